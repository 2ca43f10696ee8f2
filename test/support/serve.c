/* A small server for the tests' containers. Usage: serve PORT TEXT [graceful|ignore|abrupt]
 * Answers each connection with TEXT and a line end once it has got a line; with TEXT "-" it sends the line back.
 * On TERM: graceful (the default) takes what has already connected, finishes it and ends; ignore goes on; abrupt ends. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t stopping = 0;
static void on_term(int number) { (void)number; stopping = 1; }

static void answer(int s, const char *text) {
  char line[4096];
  ssize_t got = recv(s, line, sizeof line, 0);
  if (got <= 0) return;
  if (strcmp(text, "-") == 0) send(s, line, (size_t)got, MSG_NOSIGNAL);
  else {
    char reply[256];
    int length = snprintf(reply, sizeof reply, "%s\n", text);
    send(s, reply, (size_t)length, MSG_NOSIGNAL);
  }
  shutdown(s, SHUT_WR);
  while (recv(s, line, sizeof line, 0) > 0) continue;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  const char *mode = argc > 3 ? argv[3] : "graceful";
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = strcmp(mode, "ignore") == 0 ? SIG_IGN : on_term;
  sigaction(SIGTERM, &action, NULL);
  if (strcmp(mode, "ignore") == 0) signal(SIGHUP, SIG_IGN);
  signal(SIGCHLD, SIG_IGN);
  int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
  if (bind(s, (struct sockaddr *)&address, sizeof address) != 0 || listen(s, 1024) != 0) {
    perror("listen");
    return 1;
  }
  long long quiet_ms = 0;
  for (;;) {
    struct pollfd wait = {.fd = s, .events = POLLIN};
    int ready = poll(&wait, 1, stopping ? 50 : 1000);
    if (stopping && strcmp(mode, "abrupt") == 0) return 0;
    if (ready <= 0) {
      if (stopping && (quiet_ms += 50) >= 200) break;
      continue;
    }
    int client = accept(s, NULL, NULL);
    if (client < 0) continue;
    if (fork() == 0) {
      close(s);
      answer(client, argv[2]);
      _exit(0);
    }
    close(client);
  }
  close(s);
  signal(SIGCHLD, SIG_DFL);
  while (wait(NULL) > 0 || errno == EINTR) continue;
  return 0;
}
