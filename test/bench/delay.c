/*
 * A wire of our own between two network namespaces, where the kernel has no netem: `delay PID_A PID_B ONE_WAY_US` makes a
 * TUN device `delay0` in the namespace of each process and hands every packet over so much later. Segments of up to 64 KiB
 * cross as they are (as they do between veth devices), so that the wire costs little processor time. Packets keep their
 * order; where a queue is full, nothing more is taken from its device. Prints a line when the devices are there; ends with
 * its standard input.
 */
#define _GNU_SOURCE
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include "load.h"

enum { most_packets = 16384, largest_packet = 65536 + 64 };

struct packet {
  uint64_t due_ns;
  size_t length;
  unsigned char *bytes;
};

/* One direction. */
struct queue {
  int from, to;
  unsigned first, held;
  struct packet packets[most_packets];
};

static uint64_t delay_ns;

static int open_device(const char *pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
  int namespace = open(path, O_RDONLY | O_CLOEXEC);
  if (namespace < 0 || setns(namespace, CLONE_NEWNET) < 0) die(path);
  close(namespace);
  int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  struct ifreq wish = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
  strcpy(wish.ifr_name, "delay0");
  if (device < 0 || ioctl(device, TUNSETIFF, &wish) < 0) die("/dev/net/tun");
  if (ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0) die("TUNSETOFFLOAD");
  return device;
}

static void take_in(struct queue *queue) {
  static unsigned char bytes[largest_packet];
  while (queue->held < most_packets) {
    ssize_t length = read(queue->from, bytes, sizeof bytes);
    if (length <= 0) return;
    struct packet *packet = &queue->packets[(queue->first + queue->held) % most_packets];
    packet->bytes = malloc((size_t)length);
    if (packet->bytes == NULL) die("malloc");
    memcpy(packet->bytes, bytes, (size_t)length);
    packet->length = (size_t)length;
    packet->due_ns = now_ns() + delay_ns;
    queue->held += 1;
  }
}

/* Hands over what is due; gives when the next one is, or 0. */
static uint64_t hand_over(struct queue *queue) {
  while (queue->held > 0) {
    struct packet *packet = &queue->packets[queue->first];
    if (packet->due_ns > now_ns()) return packet->due_ns;
    /* What the other side cannot take is lost, as on a wire. */
    if (write(queue->to, packet->bytes, packet->length) < 0 && errno != EAGAIN && errno != EIO && errno != EINVAL)
      die("write");
    free(packet->bytes);
    queue->first = (queue->first + 1) % most_packets;
    queue->held -= 1;
  }
  return 0;
}

int main(int arguments, char **argument) {
  if (arguments != 4) return 2;
  static struct queue there, back;
  there.from = back.to = open_device(argument[1]);
  back.from = there.to = open_device(argument[2]);
  delay_ns = strtoull(argument[3], NULL, 10) * 1000;
  prctl(PR_SET_TIMERSLACK, 1000);
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    take_in(&there);
    take_in(&back);
    uint64_t next = hand_over(&there), other = hand_over(&back), now = now_ns();
    if (next == 0 || (other != 0 && other < next)) next = other;
    uint64_t wait_ns = next == 0 ? 1000000000 : next > now ? next - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(wait_ns / 1000000000), .tv_nsec = (long)(wait_ns % 1000000000)};
    struct pollfd fds[] = {
      {.fd = there.held < most_packets ? there.from : -1, .events = POLLIN},
      {.fd = back.held < most_packets ? back.from : -1, .events = POLLIN},
      {.fd = 0, .events = POLLIN},
    };
    ppoll(fds, 3, &timeout, NULL);
    if (fds[2].revents != 0) return 0;
  }
}
