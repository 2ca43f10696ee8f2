import type { CommandTools } from '../session.ts';
import { addAuthorityCommands } from './authority.ts';
import { addConfigCommands } from './config.ts';
import { addDrainCommands } from './drain.ts';
import { addHostCommands } from './host.ts';
import { addIntentCommands } from './intent.ts';
import { addKvCommands } from './kv.ts';
import { addMeshCommands } from './mesh.ts';
import { addRefreshCommand } from './refresh.ts';
import { addRegisterCommands } from './register.ts';
import { addServiceCommands } from './service.ts';
import { addShowCommands } from './show.ts';
import { addSplitCommand } from './split.ts';
import { addStoreCommands } from './store.ts';
import { addWhyCommand } from './why.ts';

/** All commands but `agent`, which is to come up quickly and comes without them and their views. */
export function addOtherCommands(tools: CommandTools): void {
  addShowCommands(tools);
  addWhyCommand(tools);
  addRegisterCommands(tools);
  addRefreshCommand(tools);
  addServiceCommands(tools);
  addSplitCommand(tools);
  addIntentCommands(tools);
  addHostCommands(tools);
  addDrainCommands(tools);
  addKvCommands(tools);
  addStoreCommands(tools);
  addMeshCommands(tools);
  addAuthorityCommands(tools);
  addConfigCommands(tools);
}
