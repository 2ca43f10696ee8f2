/* A small HTTP server for the tests' containers. Usage: http PORT NAME
 * Keeps connections, and answers each request after a millisecond with NAME and the length of the body it got. /health
 * answers with 503 while /tmp/sick exists. On TERM it closes connections that are idle, answers what it has begun to read,
 * and ends when nobody has come for 200 ms. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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

static int readable(int s, int wait_ms) {
  struct pollfd each = {.fd = s, .events = POLLIN};
  return poll(&each, 1, wait_ms) > 0;
}

static void serve(int s, const char *name) {
  static char text[65536];
  size_t have = 0;
  int served = 0, waited_ms = 0;
  for (;;) {
    char *end;
    while (text[have] = 0, (end = strstr(text, "\r\n\r\n")) == NULL) {
      // Who has just come is about to ask.
      if (have == 0 && stopping && (served || waited_ms >= 200) && !readable(s, 0)) return;
      if (!readable(s, 20)) {
        waited_ms += 20;
        continue;
      }
      ssize_t got = recv(s, text + have, sizeof text - 1 - have, 0);
      if (got <= 0) return;
      have += (size_t)got;
    }
    size_t head = (size_t)(end - text) + 4;
    char *field = strcasestr(text, "\r\ncontent-length:");
    size_t body = field != NULL && field < end ? strtoul(field + 17, NULL, 10) : 0;
    if (head + body >= sizeof text) return;
    while (have < head + body) {
      ssize_t got = recv(s, text + have, sizeof text - 1 - have, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return;
      have += (size_t)got;
    }
    int is_sick = strncmp(text, "GET /health ", 12) == 0 && access("/tmp/sick", F_OK) == 0;
    usleep(1000);
    char said[128], reply[512];
    int size = snprintf(said, sizeof said, "%s %zu\n", name, body);
    int length = snprintf(reply, sizeof reply, "HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s",
                          is_sick ? "503 Service Unavailable" : "200 OK", size, stopping ? "Connection: close\r\n" : "", said);
    if (send(s, reply, (size_t)length, MSG_NOSIGNAL) != length) return;
    if (strstr(reply, "\r\nConnection: close") != NULL) {
      shutdown(s, SHUT_WR);
      while (recv(s, text, sizeof text, 0) > 0) continue;
      return;
    }
    served = 1;
    have -= head + body;
    memmove(text, text + head + body, have);
  }
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_term;
  sigaction(SIGTERM, &action, NULL);
  signal(SIGCHLD, SIG_IGN);
  int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
  if (bind(s, (struct sockaddr *)&address, sizeof address) != 0 || listen(s, 1024) != 0) {
    perror("listen");
    return 1;
  }
  int told = 0, quiet_ms = 0;
  for (;;) {
    if (stopping && !told) {
      told = 1;
      kill(0, SIGTERM);
    }
    if (!readable(s, stopping ? 50 : 1000)) {
      if (stopping && (quiet_ms += 50) >= 200) break;
      continue;
    }
    int client = accept(s, NULL, NULL);
    if (client < 0) continue;
    if (fork() == 0) {
      close(s);
      setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      serve(client, argv[2]);
      _exit(0);
    }
    close(client);
  }
  close(s);
  signal(SIGCHLD, SIG_DFL);
  while (wait(NULL) > 0 || errno == EINTR) continue;
  return 0;
}
