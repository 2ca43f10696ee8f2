import type { DescMessage, DescMethod, MessageShape } from '@bufbuild/protobuf';
import { fromBinary, toBinary } from '@bufbuild/protobuf';
import type { MethodDefinition } from '@grpc/grpc-js';

/** A method of the generated services, with the types of its messages. */
interface Method<I extends DescMessage, O extends DescMessage> {
  readonly parent: DescMethod['parent'];
  readonly name: string;
  readonly methodKind: DescMethod['methodKind'];
  readonly input: I;
  readonly output: O;
}

/**
 * What gRPC needs to know of a method, for a client's calls and for a server's table. Unknown fields are dropped: nobody
 * passes messages on.
 */
export function definitionOf<I extends DescMessage, O extends DescMessage>(
  method: Method<I, O>,
): MethodDefinition<MessageShape<I>, MessageShape<O>> {
  const { input, output, methodKind } = method;
  const read = { readUnknownFields: false };
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    requestStream: methodKind === 'client_streaming' || methodKind === 'bidi_streaming',
    responseStream: methodKind === 'server_streaming' || methodKind === 'bidi_streaming',
    requestSerialize: (message) => Buffer.from(toBinary(input, message)),
    requestDeserialize: (bytes) => fromBinary(input, bytes, read),
    responseSerialize: (message) => Buffer.from(toBinary(output, message)),
    responseDeserialize: (bytes) => fromBinary(output, bytes, read),
  };
}
