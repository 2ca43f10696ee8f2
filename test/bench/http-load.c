/*
 * Clients of the HTTP benchmark whose latencies can be believed; one line of JSON at the end, times in microseconds.
 *   http-load closed ADDRESS PORT CONNECTIONS MS         each client asks again when it has its answer
 *   http-load paced  ADDRESS PORT CONNECTIONS MS RATE    requests are due at even times, RATE a second, and each counts
 *                                                        from when it was due, also while it waits for a connection
 *   http-load idle   ADDRESS PORT CONNECTIONS            each client asks once, then all wait until standard input ends
 * Measuring begins when every connection has had an answer, and ends when all that was asked is answered. Answers have a
 * Content-Length or come in one chunk.
 */
#define _GNU_SOURCE
#include "load.h"

enum { longest_ms = 60000, opening = 128, answer_room = 4096, longest_turn_ns = 5000000 };

struct client {
  int fd, got;
  uint64_t since_ns;
  char text[answer_room];
};

static struct client *clients;
static int *idle, idle_count, count, poller;
static uint64_t requests, failed, begin_ns, until_ns, due_ns, every_ns;
static uint32_t *latencies;
static size_t latency_room;
static int measuring, paced;

static void ask(struct client *of, uint64_t since_ns) {
  of->since_ns = since_ns;
  of->got = 0;
  if (write(of->fd, request, request_bytes) != (ssize_t)request_bytes) die("a request that does not go out");
}

/* The length of the answer, once its head is there; else -1. */
static long whole(const char *text) {
  const char *end = strstr(text, "\r\n\r\n");
  if (end == NULL) return -1;
  if (strncmp(text, "HTTP/1.1 200", 12) != 0) {
    failed += 1;
    return end + 4 - text;
  }
  const char *length = strcasestr(text, "\r\ncontent-length:");
  if (length != NULL && length < end) return end + 4 - text + atol(length + 17);
  const char *last = strstr(end, "\r\n0\r\n\r\n");
  return last == NULL ? -1 : last + 7 - text;
}

/* In tenths of a microsecond. */
static void keep_latency(uint64_t ns) {
  if (requests == latency_room) {
    latency_room = latency_room == 0 ? 1 << 18 : latency_room * 2;
    latencies = realloc(latencies, latency_room * sizeof *latencies);
    if (latencies == NULL) die("realloc");
  }
  latencies[requests++] = (uint32_t)(ns / 100 < UINT32_MAX ? ns / 100 : UINT32_MAX);
}

static void take(struct client *of) {
  ssize_t length = read(of->fd, of->text + of->got, answer_room - 1 - (size_t)of->got);
  if (length < 0 && errno == EAGAIN) return;
  if (length <= 0) {
    errno = length == 0 ? ECONNRESET : errno;
    die("a connection that was to stay");
  }
  of->got += (int)length;
  of->text[of->got] = 0;
  long size = whole(of->text);
  if (size < 0 || of->got < size) return;
  if (measuring) keep_latency(now_ns() - of->since_ns);
  idle[idle_count++] = (int)(of - clients);
}

static void turn(uint64_t timeout_ns) {
  struct epoll_event events[512];
  struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000), .tv_nsec = (long)(timeout_ns % 1000000000)};
  int ready = epoll_pwait2(poller, events, 512, &timeout, NULL);
  for (int i = 0; i < ready; i += 1) take(events[i].data.ptr);
}

/* Some at a time, so that no listener's queue overflows. */
static void open_all(struct sockaddr_in *target) {
  uint64_t until_ns = now_ns() + longest_ms * 1000000ull;
  for (int i = 0; i < count; i += 1) {
    struct client *of = &clients[i];
    of->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (of->fd < 0 || connect(of->fd, (struct sockaddr *)target, sizeof *target) < 0) die("connect");
    fcntl(of->fd, F_SETFL, O_NONBLOCK);
    no_delay(of->fd);
    watch(poller, EPOLL_CTL_ADD, of->fd, EPOLLIN, of);
    ask(of, now_ns());
    while (i + 1 - idle_count >= opening && now_ns() < until_ns) turn(longest_turn_ns);
  }
  while (idle_count < count && now_ns() < until_ns) turn(longest_turn_ns);
  if (idle_count < count) die("clients without an answer");
}

/* Whoever is idle asks; in paced mode only what is due. Gives how long nothing is to be asked. */
static uint64_t ask_on(void) {
  uint64_t now = now_ns();
  if (!paced) {
    while (now < until_ns && idle_count > 0) ask(&clients[idle[--idle_count]], now);
    return longest_turn_ns;
  }
  for (; due_ns <= now && due_ns < until_ns && idle_count > 0; due_ns += every_ns) ask(&clients[idle[--idle_count]], due_ns);
  if (due_ns <= now || due_ns - now > longest_turn_ns) return longest_turn_ns;
  return due_ns - now;
}

/* Nothing more is asked, and all is answered. */
static int over(void) {
  uint64_t now = now_ns();
  if (now >= until_ns + longest_ms * 1000000ull) die("answers that do not come");
  return now >= until_ns && idle_count == count && (!paced || due_ns >= until_ns);
}

static int by_size(const void *a, const void *b) {
  uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
  return left < right ? -1 : left > right;
}

static double at(double part) {
  if (requests == 0) return 0;
  size_t index = (size_t)((double)requests * part);
  return latencies[index < requests ? index : requests - 1] / 10.0;
}

static void report(void) {
  double seconds = (double)(now_ns() - begin_ns) / 1e9;
  if (requests > 0) qsort(latencies, requests, sizeof *latencies, by_size);
  printf("{\"seconds\": %.6f, \"requests\": %lu, \"failed\": %lu, \"p50Us\": %.1f, \"p99Us\": %.1f}\n", seconds, requests,
         failed, at(0.5), at(0.99));
  fflush(stdout);
}

int main(int arguments, char **argument) {
  if (arguments < 5) return 2;
  const char *mode = argument[1];
  struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argument[3]))};
  if (inet_pton(AF_INET, argument[2], &target.sin_addr) != 1) return 2;
  count = atoi(argument[4]);
  clients = calloc((size_t)count, sizeof *clients);
  idle = calloc((size_t)count, sizeof *idle);
  if (clients == NULL || idle == NULL) die("calloc");
  signal(SIGPIPE, SIG_IGN);
  poller = epoll_create1(0);
  open_all(&target);
  begin_ns = due_ns = now_ns();
  if (strcmp(mode, "idle") == 0) {
    report();
    while (getchar() != EOF) continue;
    return 0;
  }
  if (arguments < 6) return 2;
  paced = strcmp(mode, "paced") == 0;
  if (paced) every_ns = (uint64_t)(1e9 / atof(argument[6]));
  measuring = 1;
  until_ns = begin_ns + strtoull(argument[5], NULL, 10) * 1000000ull;
  while (!over()) turn(ask_on());
  report();
  return 0;
}
