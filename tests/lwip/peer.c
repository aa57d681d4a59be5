/*
 * lwIP, another engine by other people, as the peer of a program: both ends of
 * tests/e2e/lwip_counterpart.py's cases.
 *
 *   peer TAP OWN-IPV4 OWN-IPV6 OTHER-IPV4 OTHER-IPV6
 *
 * Over IPv4, then over IPv6, it accepts one connection for each case on port 5001, and makes one
 * for each to the other's port 5002. The first byte that comes names the case. It prints "listens",
 * a line for each case, and "done"; anything wrong ends it with a message. The library's own tapif
 * is not used: it writes past the ends of the pbufs that Debian's build makes for it (PBUF_POOL).
 */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <lwip/etharp.h>
#include <lwip/ethip6.h>
#include <lwip/netif.h>
#include <lwip/tcpip.h>
#include <net/if.h>
#include <posix/sockets.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define CHECK(what) check((what), #what, __LINE__)

/* Cases over each family and direction, and bytes each way of a stream. */
enum { CASES = 4, BYTES = 300000 };

/* The interface, and the frames of its device. */
static struct netif tap;
static int device;

static void check(bool right, const char *what, int line)
{
    if (right)
        return;
    fprintf(stderr, "peer.c:%d: %s: %s\n", line, what, strerror(errno));
    exit(1);
}

static uint8_t byte_at(uint32_t at)
{
    return (at * 7 % 251) ^ (at >> 12);
}

static uint32_t verify(const uint8_t *bytes, ssize_t count, uint32_t at)
{
    for (ssize_t i = 0; i < count; i++)
        if (bytes[i] != byte_at(at + i)) {
            fprintf(stderr, "byte %u is %u\n", (unsigned)(at + i), bytes[i]);
            exit(1);
        }
    return at + count;
}

/* Both directions at once; ours ends when all is written, theirs when it ends. */
static void both_ways(int socket)
{
    static uint8_t out[BYTES], in[4096];
    for (uint32_t at = 0; at < BYTES; at++)
        out[at] = byte_at(at);
    uint32_t sent = 0, got = 0;
    bool ended = false;
    while (sent < BYTES || !ended) {
        struct pollfd ready = {.fd = socket};
        ready.events = (sent < BYTES ? POLLOUT : 0) | (ended ? 0 : POLLIN);
        CHECK(lwip_poll(&ready, 1, 20000) == 1);
        if (ready.revents & POLLOUT) {
            ssize_t count = lwip_send(socket, out + sent, BYTES - sent, MSG_DONTWAIT);
            CHECK(count > 0 || errno == EWOULDBLOCK);
            sent += count > 0 ? count : 0;
            if (sent == BYTES)
                CHECK(lwip_shutdown(socket, SHUT_WR) == 0);
        }
        if (ready.revents & POLLIN) {
            ssize_t count = lwip_recv(socket, in, sizeof in, MSG_DONTWAIT);
            CHECK(count >= 0);
            got = verify(in, count, got);
            ended = count == 0;
        }
    }
    CHECK(got == BYTES);
}

/* A reader that pauses whenever its window must be full, so that it closes. */
static void slowly(int socket)
{
    static uint8_t in[40000];
    uint32_t got = 0;
    ssize_t count;
    do {
        usleep(20000);
        count = lwip_recv(socket, in, sizeof in, 0);
        CHECK(count >= 0);
        got = verify(in, count, got);
    } while (count > 0);
    CHECK(got == BYTES);
}

/* Is reset by the other. */
static void is_reset(int socket)
{
    uint8_t byte;
    CHECK(lwip_send(socket, "go", 2, 0) == 2);
    CHECK(lwip_recv(socket, &byte, 1, 0) == -1 && errno == ECONNRESET);
}

static void serve(int socket)
{
    char name;
    CHECK(lwip_recv(socket, &name, 1, 0) == 1);
    switch (name) {
    case 'b': both_ways(socket); break;
    case 's': slowly(socket); break;
    case 'r': break; /* Bytes are left unread, so the close is a reset. */
    case 'w': is_reset(socket); break;
    default: CHECK(false);
    }
    CHECK(lwip_close(socket) == 0);
    printf("%c\n", name);
}

/* The address as a socket address with a port. */
static socklen_t address(const char *text, uint16_t port, struct sockaddr_storage *into)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)into;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)into;
    memset(into, 0, sizeof *into);
    if (strchr(text, ':')) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        CHECK(inet_pton(AF_INET6, text, &v6->sin6_addr) == 1);
        return sizeof *v6;
    }
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    CHECK(inet_pton(AF_INET, text, &v4->sin_addr) == 1);
    return sizeof *v4;
}

static void run(const char *own, const char *other)
{
    struct sockaddr_storage place;
    socklen_t length = address(own, 5001, &place);
    int listener = lwip_socket(place.ss_family, SOCK_STREAM, 0);
    CHECK(listener >= 0);
    CHECK(lwip_bind(listener, (struct sockaddr *)&place, length) == 0);
    CHECK(lwip_listen(listener, CASES) == 0);
    printf("listens\n");
    for (int i = 0; i < CASES; i++) {
        int socket = lwip_accept(listener, NULL, NULL);
        CHECK(socket >= 0);
        serve(socket);
    }
    length = address(other, 5002, &place);
    for (int i = 0; i < CASES; i++) {
        int socket = lwip_socket(place.ss_family, SOCK_STREAM, 0);
        CHECK(lwip_connect(socket, (struct sockaddr *)&place, length) == 0);
        serve(socket);
    }
    CHECK(lwip_close(listener) == 0);
}

static void open_device(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    device = open("/dev/net/tun", O_RDWR);
    CHECK(device >= 0 && ioctl(device, TUNSETIFF, &request) == 0);
}

static err_t send_frame(struct netif *interface, struct pbuf *frame)
{
    uint8_t bytes[2048];
    (void)interface;
    uint16_t length = pbuf_copy_partial(frame, bytes, sizeof bytes, 0);
    return write(device, bytes, length) == length ? ERR_OK : ERR_IF;
}

static void *take_frames(void *nothing)
{
    uint8_t bytes[2048];
    ssize_t length;
    while ((length = read(device, bytes, sizeof bytes)) > 0) {
        struct pbuf *frame = pbuf_alloc(PBUF_RAW, length, PBUF_RAM);
        CHECK(frame && pbuf_take(frame, bytes, length) == ERR_OK);
        if (tap.input(frame, &tap) != ERR_OK)
            pbuf_free(frame); /* Its queue is full: lost, as by any NIC. */
    }
    return nothing;
}

static err_t set_up(struct netif *interface)
{
    static const uint8_t mac[] = {2, 0, 0, 0, 7, 3};
    memcpy(interface->hwaddr, mac, sizeof mac);
    interface->hwaddr_len = sizeof mac;
    interface->mtu = 1500;
    interface->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET |
                       NETIF_FLAG_MLD6 | NETIF_FLAG_LINK_UP;
    interface->output = etharp_output;
    interface->output_ip6 = ethip6_output;
    interface->linkoutput = send_frame;
    return ERR_OK;
}

/* In lwIP's thread: the interface with its two addresses. */
static void add_interface(void *addresses)
{
    char **own = addresses;
    ip4_addr_t v4, mask, none = {0};
    ip6_addr_t v6;
    CHECK(ip4addr_aton(own[0], &v4) == 1 && ip6addr_aton(own[1], &v6) == 1);
    IP4_ADDR(&mask, 255, 255, 255, 0);
    CHECK(netif_add(&tap, &v4, &mask, &none, NULL, set_up, tcpip_input) != NULL);
    netif_create_ip6_linklocal_address(&tap, 1);
    netif_ip6_addr_set(&tap, 1, &v6);
    /* Without a search for others that have them. */
    netif_ip6_addr_set_state(&tap, 0, IP6_ADDR_PREFERRED);
    netif_ip6_addr_set_state(&tap, 1, IP6_ADDR_PREFERRED);
    netif_set_default(&tap);
    netif_set_up(&tap);
}

static void set_done(void *flag)
{
    sys_sem_signal(flag);
}

int main(int argc, char **argv)
{
    CHECK(argc == 6);
    setvbuf(stdout, NULL, _IOLBF, 0);
    open_device(argv[1]);
    sys_sem_t done;
    CHECK(sys_sem_new(&done, 0) == ERR_OK);
    tcpip_init(add_interface, argv + 2);
    CHECK(tcpip_callback(set_done, &done) == ERR_OK);
    sys_sem_wait(&done);
    pthread_t taker;
    CHECK(pthread_create(&taker, NULL, take_frames, NULL) == 0);
    run(argv[2], argv[4]);
    run(argv[3], argv[5]);
    printf("done\n");
    return 0;
}
