/* Sends frames with whatever addresses it is told, as a container with NET_RAW can.
 * Usage: spoof INTERFACE SOURCE-MAC DESTINATION-MAC SOURCE-IP DESTINATION-IP PORT PROTOCOL COUNT
 * PROTOCOL: tcp (a SYN), udp (a question for the A record of `spoof`), qinq (as udp, behind two VLAN tags of the number 0).
 * SOURCE-MAC `own`: the interface's. */
#include <arpa/inet.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static uint32_t add(uint32_t sum, const uint8_t *data, size_t length) {
  for (size_t i = 0; i < length; i++) sum += i % 2 == 0 ? data[i] << 8 : data[i];
  return sum;
}

static void put_checksum(uint8_t *at, uint32_t sum) {
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  at[0] = (uint8_t)(~sum >> 8);
  at[1] = (uint8_t)~sum;
}

static int mac_of(const char *text, uint8_t *mac) {
  unsigned part[6];
  if (sscanf(text, "%x:%x:%x:%x:%x:%x", &part[0], &part[1], &part[2], &part[3], &part[4], &part[5]) != 6) return -1;
  for (int i = 0; i < 6; i++) mac[i] = (uint8_t)part[i];
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 9) return 2;
  const char *protocol = argv[7];
  int is_tcp = strcmp(protocol, "tcp") == 0;
  uint16_t port = (uint16_t)atoi(argv[6]);
  int s = socket(AF_PACKET, SOCK_RAW, 0);
  struct ifreq request;
  memset(&request, 0, sizeof request);
  strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
  if (s < 0 || ioctl(s, SIOCGIFHWADDR, &request) != 0) {
    perror(argv[1]);
    return 1;
  }
  uint8_t frame[256] = {0};
  uint8_t *next = frame + 12;
  if (mac_of(argv[3], frame) != 0) return 2;
  memcpy(frame + 6, request.ifr_hwaddr.sa_data, 6);
  if (strcmp(argv[2], "own") != 0 && mac_of(argv[2], frame + 6) != 0) return 2;
  if (strcmp(protocol, "qinq") == 0) {
    static const uint8_t tags[8] = {0x81, 0, 0, 0, 0x81, 0, 0, 0};
    memcpy(next, tags, sizeof tags);
    next += sizeof tags;
  }
  *next++ = 8;
  *next++ = 0;

  static const uint8_t question[] = {0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5, 's', 'p', 'o', 'o', 'f', 0, 0, 1, 0, 1};
  size_t body = is_tcp ? 20 : 8 + sizeof question;
  uint8_t *ip = next, *transport = next + 20;
  ip[0] = 0x45;
  ip[3] = (uint8_t)(20 + body);
  ip[8] = 64;
  ip[9] = is_tcp ? 6 : 17;
  if (inet_pton(AF_INET, argv[4], ip + 12) != 1 || inet_pton(AF_INET, argv[5], ip + 16) != 1) return 2;
  put_checksum(ip + 10, add(0, ip, 20));
  if (is_tcp) {
    transport[12] = 0x50;
    transport[13] = 2;
    transport[14] = 0xff;
  } else {
    transport[5] = (uint8_t)body;
    memcpy(transport + 8, question, sizeof question);
  }

  struct sockaddr_ll to;
  memset(&to, 0, sizeof to);
  to.sll_family = AF_PACKET;
  to.sll_ifindex = (int)if_nametoindex(argv[1]);
  to.sll_halen = 6;
  memcpy(to.sll_addr, frame, 6);
  int count = atoi(argv[8]);
  for (int i = 0; i < count; i++) {
    uint16_t source = (uint16_t)(20000 + i);
    transport[0] = (uint8_t)(source >> 8);
    transport[1] = (uint8_t)source;
    transport[2] = (uint8_t)(port >> 8);
    transport[3] = (uint8_t)port;
    uint8_t *sum = transport + (is_tcp ? 16 : 6);
    sum[0] = sum[1] = 0;
    put_checksum(sum, add(add(ip[9] + (uint32_t)body, ip + 12, 8), transport, body));
    size_t length = (size_t)(transport - frame) + body;
    if (sendto(s, frame, length, 0, (struct sockaddr *)&to, sizeof to) < 0) {
      perror("sendto");
      return 1;
    }
  }
  printf("sent %d\n", count);
  return 0;
}
