/* What the origin and the clients of the tunnel benchmark agree on. */
#ifndef LOAD_H
#define LOAD_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\nthirty-three bytes of the origin\n";
enum { request_bytes = sizeof request - 1, answer_bytes = sizeof answer - 1 };

/* The content of a bulk transfer is this block, repeated. */
enum { block_bytes = 1 << 20 };
static unsigned char block[block_bytes];

static inline void fill_block(void) {
  uint32_t state = 0x2545f491;
  for (int i = 0; i < block_bytes; i += 1) {
    state = state * 1664525u + 1013904223u;
    block[i] = (unsigned char)(state >> 24);
  }
}

static inline uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void die(const char *what) {
  perror(what);
  exit(1);
}

static inline void watch(int poller, int operation, int fd, uint32_t events, void *of) {
  struct epoll_event event = {.events = events, .data.ptr = of};
  if (epoll_ctl(poller, operation, fd, &event) < 0) die("epoll_ctl");
}

static inline void no_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

#endif
