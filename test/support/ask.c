/* Resolves a name as the C library does and, with a port, connects and prints what the other side says.
 * Usage: ask NAME [PORT [COUNT]]. Built against musl and glibc by the tests, because the two ask differently. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int ask_once(const char *name, const char *port) {
  struct addrinfo hints, *found = NULL;
  memset(&hints, 0, sizeof hints);
  hints.ai_socktype = SOCK_STREAM;
  int fault = getaddrinfo(name, port, &hints, &found);
  if (fault != 0) {
    printf("%s\n", gai_strerror(fault));
    return 1;
  }
  if (port == NULL) {
    for (struct addrinfo *each = found; each != NULL; each = each->ai_next) {
      char text[INET6_ADDRSTRLEN];
      void *address = each->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)each->ai_addr)->sin_addr
                                                 : (void *)&((struct sockaddr_in6 *)each->ai_addr)->sin6_addr;
      printf("%s\n", inet_ntop(each->ai_family, address, text, sizeof text));
    }
    freeaddrinfo(found);
    return 0;
  }
  int status = 1;
  int s = socket(found->ai_family, SOCK_STREAM, 0);
  struct timeval limit = {5, 0};
  setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (connect(s, found->ai_addr, found->ai_addrlen) != 0) perror("connect");
  else {
    char text[256];
    ssize_t got;
    send(s, "?\n", 2, MSG_NOSIGNAL);
    while ((got = recv(s, text, sizeof text, 0)) > 0) {
      fwrite(text, 1, (size_t)got, stdout);
      status = 0;
    }
  }
  close(s);
  freeaddrinfo(found);
  return status;
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  int count = argc > 3 ? atoi(argv[3]) : 1;
  int status = 0;
  for (int i = 0; i < count; i++) status |= ask_once(argv[1], argc > 2 ? argv[2] : NULL);
  return status;
}
