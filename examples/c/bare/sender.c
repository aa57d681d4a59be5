/*
 * Sends UDP datagrams from a bare AF_XDP socket as fast as the queue takes them.
 *
 *   bare/sender [--queue N] [--port PORT] [--size BYTES] [--seconds S] [--rate PER_SECOND]
 *               [--flows N] [--json] INTERFACE ADDRESS
 *
 * Every frame is made once, with complete checksums; sending costs one descriptor. --flows spreads
 * the source port over N numbers.
 */
#include "common.h"
#include "frame.h"
#include "xsk.h"

#include <net/if.h>
#include <sys/ioctl.h>

enum { SEND_CHUNKS = CHUNKS - RECEIVE_CHUNKS, BATCH = 256, FIRST_SOURCE_PORT = 20000 };

static char own_mac[6], peer_mac[6];
static struct in_addr own_ip, peer_ip;

/* The kernel's facts: our addresses, and the peer's MAC after one datagram made it ask. */
static void learn(const char *interface, const char *peer)
{
    struct sockaddr_storage remote;
    socklen_t length = address(peer, 9, &remote);
    errno = 0;
    if (remote.ss_family != AF_INET)
        fail("%s: only IPv4", peer);
    peer_ip = ((struct sockaddr_in *)&remote)->sin_addr;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", interface);
    if (ioctl(fd, SIOCGIFHWADDR, &request) < 0)
        fail("MAC of %s", interface);
    memcpy(own_mac, request.ifr_hwaddr.sa_data, 6);
    if (ioctl(fd, SIOCGIFADDR, &request) < 0)
        fail("address of %s", interface);
    own_ip = ((struct sockaddr_in *)&request.ifr_addr)->sin_addr;

    for (int try = 0; try < 100; try++) {
        sendto(fd, "", 0, 0, (struct sockaddr *)&remote, length);
        sleep_ms(10);
        FILE *table = fopen("/proc/net/arp", "r");
        char line[256], ip[64], mac[32];
        unsigned type, flags, m[6];
        while (table && fgets(line, sizeof line, table)) {
            if (sscanf(line, "%63s 0x%x 0x%x %31s", ip, &type, &flags, mac) != 4 ||
                strcmp(ip, peer) != 0 || !(flags & 2))
                continue;
            if (sscanf(mac, "%x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
                continue;
            for (int i = 0; i < 6; i++)
                peer_mac[i] = (char)m[i];
            fclose(table);
            close(fd);
            return;
        }
        if (table)
            fclose(table);
    }
    errno = 0;
    fail("no answer to ARP for %s", peer);
}

static void build(char *frame, uint16_t source_port, uint16_t port, size_t size)
{
    memset(frame, 0, HEADER_BYTES + size);
    memcpy(frame, peer_mac, 6);
    memcpy(frame + 6, own_mac, 6);
    put16(frame + AT_TYPE, 0x0800);
    frame[AT_IP] = 0x45;
    put16(frame + AT_IP + 2, (uint16_t)(28 + size));
    put16(frame + AT_IP + 6, 0x4000); /* do not fragment */
    frame[AT_IP + 8] = 64;            /* TTL */
    frame[AT_IP + 9] = 17;            /* UDP */
    memcpy(frame + AT_SOURCE, &own_ip, 4);
    memcpy(frame + AT_DESTINATION, &peer_ip, 4);
    put16(frame + AT_IP_CHECKSUM, finish_sum(sum16(frame + AT_IP, 20, 0)));
    put16(frame + AT_SOURCE_PORT, source_port);
    put16(frame + AT_DESTINATION_PORT, port);
    put16(frame + AT_UDP_LENGTH, (uint16_t)(8 + size));
    uint32_t pseudo = sum16(frame + AT_SOURCE, 8, 17 + 8 + (uint32_t)size);
    uint16_t sum = finish_sum(sum16(frame + AT_SOURCE_PORT, 8 + size, pseudo));
    put16(frame + AT_UDP_CHECKSUM, sum ? sum : 0xffff);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"queue", required_argument, 0, 'q'}, {"port", required_argument, 0, 'p'},
        {"size", required_argument, 0, 'z'},  {"seconds", required_argument, 0, 's'},
        {"rate", required_argument, 0, 'r'},  {"flows", required_argument, 0, 'f'},
        {"json", no_argument, 0, 'j'},        {0, 0, 0, 0},
    };
    unsigned queue = 0;
    uint16_t port = 4321;
    long size = 22, seconds = 3, rate = 0, flows = 1;
    bool json = false;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'q': queue = (unsigned)number("queue", optarg, 0, 63); break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 'z': size = number("size", optarg, 0, 1472); break;
        case 's': seconds = number("seconds", optarg, 1, 86400); break;
        case 'r': rate = number("rate", optarg, 1, 100000000); break;
        case 'f': flows = number("flows", optarg, 1, 4096); break;
        case 'j': json = true; break;
        default: return 2;
        }
    }
    errno = 0;
    if (optind + 2 != argc)
        fail("usage: sender [options] INTERFACE ADDRESS");
    stop_on_signals();
    learn(argv[optind], argv[optind + 1]);
    struct xsk xsk;
    xsk_open(&xsk, argv[optind], queue);
    for (uint32_t i = 0; i < SEND_CHUNKS; i++)
        build(xsk_at(&xsk, (uint64_t)(RECEIVE_CHUNKS + i) * CHUNK_BYTES),
              (uint16_t)(FIRST_SOURCE_PORT + i % (uint32_t)flows), port, (size_t)size);

    unsigned long long packets = 0;
    uint32_t next = 0, outstanding = 0;
    uint64_t start = now_ns(), end = start + (uint64_t)seconds * 1000000000u, now = start;
    while ((now = now_ns()) < end && !atomic_load_explicit(&stopping, memory_order_relaxed)) {
        uint64_t done[BATCH];
        outstanding -= xsk_complete(&xsk, done, BATCH);
        uint32_t most = SEND_CHUNKS - outstanding < BATCH ? SEND_CHUNKS - outstanding : BATCH;
        if (rate) {
            double due = (double)(now - start) * 1e-9 * (double)rate - (double)packets;
            most = due < (double)most ? (due > 0 ? (uint32_t)due : 0) : most;
        }
        struct xdp_desc frames[BATCH];
        for (uint32_t i = 0; i < most; i++)
            frames[i] = (struct xdp_desc){
                .addr = (uint64_t)(RECEIVE_CHUNKS + (next + i) % SEND_CHUNKS) * CHUNK_BYTES,
                .len = (uint32_t)(HEADER_BYTES + size)};
        uint32_t sent = xsk_send(&xsk, frames, most);
        next += sent;
        outstanding += sent;
        packets += sent;
        xsk_doorbell(&xsk);
    }
    double took = (double)(now - start) * 1e-9;
    printf(json ? "{\"packets\":%llu,\"seconds\":%.6f,\"rate\":%.0f,\"cpu_ns_per_packet\":%.1f}\n"
                : "%llu packets in %.3f s: %.0f packets/s, %.0f ns of processor time each\n",
           packets, took, (double)packets / took,
           packets ? (double)cpu_ns() / (double)packets : 0);
    return 0;
}
