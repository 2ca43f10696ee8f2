/*
 * The clients of the tunnel benchmark; every byte that arrives is compared. One line of JSON at the end.
 *   load-client requests ADDRESS PORT CONNECTIONS MS [PID...]     requests on connections that stay
 *   load-client connections ADDRESS PORT AT_A_TIME MS [PID...]    a connection, one request, close
 *   load-client fetch ADDRESS PORT STREAMS MIB [PID...]           bulk; ends early by SIGTERM
 *   load-client idle ADDRESS PORT CONNECTIONS                     holds them until its standard input ends
 * What it measures begins when all connections have had an answer (for new connections after a warm-up), and so does the
 * processor time of the processes PID. Times are told in microseconds.
 */
#define _GNU_SOURCE
#include "load.h"

enum { longest_ms = 120000, warm_up_ms = 300, most_pids = 8 };

struct connection {
  int fd, connected, got, answered;
  uint64_t began_ns, received;
};

static struct sockaddr_in target;
static struct connection *connections;
static int poller, count, pids[most_pids], pid_count;
static uint64_t requests, failed, wrong, bytes, begin_ns;
static double cpu_begin;
static uint32_t *latencies;
static size_t latency_count, latency_room;
static volatile sig_atomic_t stopped;

static void stop(int signal_number) { stopped = signal_number; }

static double cpu_seconds(void) {
  double sum = 0;
  for (int i = 0; i < pid_count; i += 1) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pids[i]);
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (length <= 0) die(path);
    close(fd);
    text[length] = 0;
    unsigned long user = 0, kernel = 0;
    char *rest = strrchr(text, ')');
    if (rest == NULL || sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
      die("processor time");
    sum += (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
  }
  return sum;
}

static void begin(void) {
  requests = bytes = latency_count = 0;
  cpu_begin = cpu_seconds();
  begin_ns = now_ns();
}

static int by_size(const void *a, const void *b) {
  uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
  return left < right ? -1 : left > right;
}

static double latency_at(double part) {
  if (latency_count == 0) return 0;
  size_t index = (size_t)((double)latency_count * part);
  return latencies[index < latency_count ? index : latency_count - 1] / 10.0;
}

static void report(int complete) {
  double seconds = (double)(now_ns() - begin_ns) / 1e9, cpu = cpu_seconds() - cpu_begin;
  if (latency_count > 0) qsort(latencies, latency_count, sizeof *latencies, by_size);
  printf("{\"seconds\": %.6f, \"requests\": %lu, \"bytes\": %lu, \"cpuSeconds\": %.3f, \"p50Us\": %.1f, \"p99Us\": %.1f, "
         "\"failed\": %lu, \"wrong\": %lu, \"complete\": %d}\n",
         seconds, requests, bytes, cpu, latency_at(0.5), latency_at(0.99), failed, wrong, complete);
  fflush(stdout);
}

/* In tenths of a microsecond. */
static void keep_latency(uint64_t ns) {
  if (latency_count == latency_room) {
    latency_room = latency_room == 0 ? 1 << 20 : latency_room * 2;
    latencies = realloc(latencies, latency_room * sizeof *latencies);
    if (latencies == NULL) die("realloc");
  }
  latencies[latency_count++] = (uint32_t)(ns / 100 < UINT32_MAX ? ns / 100 : UINT32_MAX);
}

static void dial(struct connection *of) {
  *of = (struct connection){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), .began_ns = now_ns()};
  if (of->fd < 0) die("socket");
  no_delay(of->fd);
  if (connect(of->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS) die("connect");
  watch(poller, EPOLL_CTL_ADD, of->fd, EPOLLOUT, of);
}

/* Writes what opens the exchange. False when the connection has failed, which is then counted and closed. */
static int ask(struct connection *of, const void *what, size_t length) {
  int problem = 0;
  socklen_t size = sizeof problem;
  getsockopt(of->fd, SOL_SOCKET, SO_ERROR, &problem, &size);
  if (problem == 0 && write(of->fd, what, length) == (ssize_t)length) return 1;
  failed += 1;
  close(of->fd);
  of->fd = -1;
  return 0;
}

static void ask_first(struct connection *of, const void *what, size_t length) {
  of->connected = 1;
  if (ask(of, what, length)) watch(poller, EPOLL_CTL_MOD, of->fd, EPOLLIN, of);
}

/* Gives 1 for a whole answer, 0 for a part, -1 for a failed connection. */
static int read_answer(struct connection *of) {
  char text[1024];
  ssize_t length = read(of->fd, text, sizeof text);
  if (length < 0 && errno == EAGAIN) return 0;
  if (length > 0 && of->got + length <= answer_bytes && memcmp(text, answer + of->got, (size_t)length) == 0) {
    of->got += (int)length;
    if (of->got < answer_bytes) return 0;
    of->got = 0;
    of->answered += 1;
    requests += 1;
    keep_latency(now_ns() - of->began_ns);
    return 1;
  }
  if (length > 0) wrong += 1;
  failed += 1;
  close(of->fd);
  of->fd = -1;
  return -1;
}

typedef void handler(struct connection *of);

static void turn(handler handle, int timeout_ms) {
  struct epoll_event events[512];
  int ready = epoll_wait(poller, events, 512, timeout_ms);
  for (int i = 0; i < ready; i += 1) {
    struct connection *of = events[i].data.ptr;
    if (of->fd < 0) continue;
    handle(of);
  }
}

static void turn_until(handler handle, uint64_t until_ns) {
  while (now_ns() < until_ns && stopped == 0) turn(handle, 5);
}

static int answered_once(void) {
  int sum = 0;
  for (int i = 0; i < count; i += 1) sum += connections[i].answered > 0;
  return sum;
}

/* One request after the other. */
static void again(struct connection *of) {
  if (!of->connected) return ask_first(of, request, request_bytes);
  if (read_answer(of) != 1) return;
  of->began_ns = now_ns();
  ask(of, request, request_bytes);
}

/* One request, and then a new connection in its place. */
static void anew(struct connection *of) {
  if (!of->connected) ask_first(of, request, request_bytes);
  else if (read_answer(of) == 1) close(of->fd);
  else if (of->fd >= 0) return;
  if (!of->connected || of->answered > 0 || of->fd < 0) dial(of);
}

static void once(struct connection *of) {
  if (!of->connected) return ask_first(of, request, request_bytes);
  read_answer(of);
}

static uint64_t wanted;
static int done, complete;

static void fetch(struct connection *of) {
  static unsigned char received[block_bytes];
  if (!of->connected) {
    unsigned char size[8];
    for (int i = 0; i < 8; i += 1) size[i] = (unsigned char)(wanted >> (8 * i));
    ask_first(of, size, sizeof size);
    done += of->fd < 0;
    return;
  }
  ssize_t length = read(of->fd, received, sizeof received);
  if (length < 0 && errno == EAGAIN) return;
  if (length <= 0) {
    complete += length == 0 && of->received == wanted;
    done += 1;
    close(of->fd);
    of->fd = -1;
    return;
  }
  size_t offset = of->received % block_bytes, first = block_bytes - offset;
  if (first > (size_t)length) first = (size_t)length;
  wrong += memcmp(received, block + offset, first) != 0;
  wrong += memcmp(received + first, block, (size_t)length - first) != 0;
  of->received += (uint64_t)length;
  bytes += (uint64_t)length;
}

/* New ones a few hundred at a time, so that no listener's queue overflows. */
static void open_all(handler handle, int step) {
  uint64_t until_ns = now_ns() + longest_ms * 1000000ull;
  for (int i = 0; i < count; i += 1) {
    dial(&connections[i]);
    while (i + 1 - answered_once() - (int)failed >= step && now_ns() < until_ns) turn(handle, 5);
  }
  while (answered_once() + (int)failed < count && now_ns() < until_ns) turn(handle, 5);
}

int main(int arguments, char **argument) {
  if (arguments < 5) return 2;
  const char *mode = argument[1];
  uint64_t limit = arguments > 5 ? strtoull(argument[5], NULL, 10) : 0;
  target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argument[3]))};
  if (inet_pton(AF_INET, argument[2], &target.sin_addr) != 1) return 2;
  count = atoi(argument[4]);
  for (int i = 6; i < arguments && pid_count < most_pids; i += 1) pids[pid_count++] = atoi(argument[i]);
  connections = calloc((size_t)count, sizeof *connections);
  if (connections == NULL) die("calloc");
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTERM, stop);
  poller = epoll_create1(0);
  if (strcmp(mode, "requests") == 0) {
    open_all(again, 128);
    begin();
    turn_until(again, begin_ns + limit * 1000000);
    report(answered_once());
  } else if (strcmp(mode, "connections") == 0) {
    for (int i = 0; i < count; i += 1) dial(&connections[i]);
    turn_until(anew, now_ns() + warm_up_ms * 1000000ull);
    begin();
    turn_until(anew, begin_ns + limit * 1000000);
    report(count);
  } else if (strcmp(mode, "fetch") == 0) {
    fill_block();
    wanted = limit << 20;
    begin();
    for (int i = 0; i < count; i += 1) dial(&connections[i]);
    while (done < count && stopped == 0 && now_ns() < begin_ns + longest_ms * 1000000ull) turn(fetch, 50);
    report(complete);
  } else if (strcmp(mode, "idle") == 0) {
    open_all(once, 64);
    begin();
    report(answered_once());
    while (getchar() != EOF) continue;
    for (int i = 0; i < count; i += 1) {
      connections[i].answered = 0;
      if (connections[i].fd >= 0) ask(&connections[i], request, request_bytes);
    }
    uint64_t until_ns = now_ns() + 10000000000ull;
    while (answered_once() + (int)failed < count && now_ns() < until_ns) turn(once, 5);
    report(answered_once());
  } else return 2;
  return 0;
}
