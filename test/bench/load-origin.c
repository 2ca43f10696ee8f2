/*
 * The origin of the tunnel benchmark: `load-origin` listens on two free ports of all addresses and prints them. On the
 * first it answers small HTTP requests, on the second it reads a number of bytes as 8 octets (little endian), sends as
 * many and closes right after the last one. Ends with its standard input.
 */
#define _GNU_SOURCE
#include "load.h"

enum kind { listener_http, listener_bulk, input, http, bulk };

struct connection {
  enum kind kind;
  int fd;
  int got; /* of a request, or of the 8 octets */
  unsigned char size[8];
  uint64_t sent, total;
};

static int poller;

static struct connection *make(enum kind kind, int fd, uint32_t events) {
  struct connection *made = calloc(1, sizeof *made);
  if (made == NULL) die("calloc");
  made->kind = kind;
  made->fd = fd;
  watch(poller, EPOLL_CTL_ADD, fd, events, made);
  return made;
}

static void end(struct connection *of) {
  close(of->fd);
  free(of);
}

static int listen_anywhere(enum kind kind) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET};
  socklen_t length = sizeof address;
  if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 4096) < 0) die("listen");
  getsockname(fd, (struct sockaddr *)&address, &length);
  make(kind, fd, EPOLLIN);
  return ntohs(address.sin_port);
}

static void take(struct connection *listener) {
  for (int left = 64; left > 0; left -= 1) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    no_delay(fd);
    make(listener->kind == listener_http ? http : bulk, fd, EPOLLIN);
  }
}

/* A connection that asks anything else than agreed is ended, and its client counts it as failed. */
static void answer_requests(struct connection *of) {
  char bytes[16384], answers[sizeof bytes / request_bytes * answer_bytes + answer_bytes];
  ssize_t length = read(of->fd, bytes, sizeof bytes);
  if (length < 0 && errno == EAGAIN) return;
  if (length <= 0) return end(of);
  size_t out = 0;
  for (ssize_t i = 0; i < length; i += 1) {
    if (bytes[i] != request[of->got]) return end(of);
    of->got += 1;
    if (of->got < request_bytes) continue;
    of->got = 0;
    memcpy(answers + out, answer, answer_bytes);
    out += answer_bytes;
  }
  if (out > 0 && write(of->fd, answers, out) != (ssize_t)out) end(of);
}

static void send_bulk(struct connection *of) {
  while (of->sent < of->total) {
    size_t offset = of->sent % block_bytes, length = block_bytes - offset;
    if (length > of->total - of->sent) length = of->total - of->sent;
    ssize_t sent = write(of->fd, block + offset, length);
    if (sent < 0 && errno == EAGAIN) return watch(poller, EPOLL_CTL_MOD, of->fd, EPOLLOUT, of);
    if (sent < 0) break;
    of->sent += (uint64_t)sent;
  }
  end(of);
}

static void read_size(struct connection *of) {
  ssize_t length = read(of->fd, of->size + of->got, sizeof of->size - (size_t)of->got);
  if (length < 0 && errno == EAGAIN) return;
  if (length <= 0) return end(of);
  of->got += (int)length;
  if (of->got < (int)sizeof of->size) return;
  for (int i = 7; i >= 0; i -= 1) of->total = of->total << 8 | of->size[i];
  send_bulk(of);
}

int main(void) {
  signal(SIGPIPE, SIG_IGN);
  fill_block();
  poller = epoll_create1(0);
  int http_port = listen_anywhere(listener_http), bulk_port = listen_anywhere(listener_bulk);
  make(input, 0, EPOLLIN);
  printf("{\"http\": %d, \"bulk\": %d}\n", http_port, bulk_port);
  fflush(stdout);
  for (;;) {
    struct epoll_event events[256];
    int count = epoll_wait(poller, events, 256, -1);
    for (int i = 0; i < count; i += 1) {
      struct connection *of = events[i].data.ptr;
      if (of->kind == input) return 0;
      if (of->kind == listener_http || of->kind == listener_bulk) take(of);
      else if (of->kind == http) answer_requests(of);
      else if (of->total > 0) send_bulk(of);
      else read_size(of);
    }
  }
}
