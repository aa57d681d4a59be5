/* Control messages, both ways. */
#include "case.h"

#include <linux/net_tstamp.h>

struct packet {
    struct msghdr message;
    struct iovec room;
    struct sockaddr_storage from;
    char bytes[2048];
    char ancillary[512];
};

static long take(int fd, struct packet *packet, int flags)
{
    packet->room = (struct iovec){packet->bytes, sizeof packet->bytes};
    packet->message = (struct msghdr){.msg_name = &packet->from,
                                      .msg_namelen = sizeof packet->from,
                                      .msg_iov = &packet->room,
                                      .msg_iovlen = 1,
                                      .msg_control = packet->ancillary,
                                      .msg_controllen = sizeof packet->ancillary};
    long got = recvmsg(fd, &packet->message, flags);
    content("recvmsg", packet->bytes, got);
    return got;
}

/* Prints every control message that has no varying content. */
static void show(struct packet *packet)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&packet->message); c;
         c = CMSG_NXTHDR(&packet->message, c)) {
        unsigned length = (unsigned)(c->cmsg_len - CMSG_LEN(0));
        line("  level %d type %d length %u", c->cmsg_level, c->cmsg_type, length);
        char text[64];
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            line("  to %s", inet_ntop(AF_INET, &info.ipi_addr, text, sizeof text));
            line("  at %s", inet_ntop(AF_INET, &info.ipi_spec_dst, text, sizeof text));
            yes("  interface", info.ipi_ifindex > 0);
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            line("  to %s", inet_ntop(AF_INET6, &info.ipi6_addr, text, sizeof text));
            yes("  interface", info.ipi6_ifindex > 0);
        } else if (c->cmsg_level != SOL_SOCKET) {
            int number = 0;
            memcpy(&number, CMSG_DATA(c), length < 4 ? length : 4);
            line("  value %d", number);
        }
    }
    yes("  MSG_CTRUNC", packet->message.msg_flags & MSG_CTRUNC);
}

static void turn_on(int fd, int level, int option)
{
    int on = 1;
    value("setsockopt", setsockopt(fd, level, option, &on, sizeof on));
}

CASE(ancillary_pktinfo, ACCELERATED)
{
    struct packet packet;
    int fd = udp("", 5501);
    turn_on(fd, IPPROTO_IP, IP_PKTINFO);
    peer("send %s 6000 5501 5 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        take(fd, &packet, 0);
        show(&packet);
    }
    /* The reply from the address that was asked, as a name server does it. */
    peer("reset");
    struct to to = at(peer4, SINK);
    packet.message.msg_name = &to.at;
    packet.message.msg_namelen = to.length;
    packet.room.iov_len = 5;
    for (int i = 0; i < 3; i++)
        value("sendmsg with PKTINFO", sendmsg(fd, &packet.message, 0));
    line("sink: %s", peer("sunk"));
}

CASE(ancillary_pktinfo_ipv6, ACCELERATED)
{
    struct packet packet;
    int fd = udp("::", 5502);
    turn_on(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO);
    turn_on(fd, IPPROTO_IPV6, IPV6_RECVTCLASS);
    turn_on(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT);
    peer("send %s 6000 5502 5 3 0 32 41", host6);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        take(fd, &packet, 0);
        show(&packet);
    }
    peer("reset");
    struct to to = at(peer6, SINK);
    packet.message.msg_name = &to.at;
    packet.message.msg_namelen = to.length;
    packet.room.iov_len = 5;
    packet.message.msg_controllen = CMSG_SPACE(sizeof(struct in6_pktinfo));
    value("sendmsg with PKTINFO", sendmsg(fd, &packet.message, 0));
    line("sink: %s", peer("sunk"));
}

CASE(ancillary_tos_ttl, ACCELERATED)
{
    struct packet packet;
    int fd = udp(host4, 5503);
    turn_on(fd, IPPROTO_IP, IP_RECVTOS);
    turn_on(fd, IPPROTO_IP, IP_RECVTTL);
    peer("send %s 6000 5503 5 2 0 16 33", host4);
    peer("send %s 6000 5503 5 2 0 40 255", host4);
    for (int i = 0; i < 4; i++) {
        wait_for(fd, POLLIN, 2000);
        take(fd, &packet, 0);
        show(&packet);
    }
    /* Per datagram on the way out. */
    peer("reset");
    struct to to = at(peer4, SINK);
    struct iovec part = {"marked", 6};
    char ancillary[2 * CMSG_SPACE(sizeof(int))] = "";
    struct msghdr message = {.msg_name = &to.at,
                             .msg_namelen = to.length,
                             .msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, IP_TOS};
    *(int *)CMSG_DATA(c) = 0x30;
    c = CMSG_NXTHDR(&message, c);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, IP_TTL};
    *(int *)CMSG_DATA(c) = 9;
    value("sendmsg", sendmsg(fd, &message, 0));
    line("sink: %s", peer("sunk"));
    send_to(fd, "plain", peer4, SINK);
    line("sink: %s", peer("sunk"));
}

/* The same over IPv6, and values that the kernel refuses. Marked datagrams go by the kernel. */
CASE(ancillary_tclass_hoplimit, MIXED)
{
    static const struct {
        int tclass, hops;
    } asked[] = {{0x30, 9}, {0x48, 0}, {0, 200}, {255, 255}, {0x28, 300}, {256, 1}, {-1, -1}};
    int fd = udp(host6, 5506);
    struct to to = at(peer6, SINK);
    struct iovec part = {"marked", 6};
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        char ancillary[2 * CMSG_SPACE(sizeof(int))] = "";
        struct msghdr message = {.msg_name = &to.at,
                                 .msg_namelen = to.length,
                                 .msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = ancillary,
                                 .msg_controllen = sizeof ancillary};
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IPV6, IPV6_TCLASS};
        memcpy(CMSG_DATA(c), &asked[i].tclass, sizeof(int));
        if (asked[i].hops == 0)
            message.msg_controllen = CMSG_SPACE(sizeof(int));
        else
            c = CMSG_NXTHDR(&message, c);
        if (asked[i].hops != 0) {
            *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IPV6, IPV6_HOPLIMIT};
            memcpy(CMSG_DATA(c), &asked[i].hops, sizeof(int));
        }
        line("class %d, hops %d", asked[i].tclass, asked[i].hops);
        peer("reset");
        value("sendmsg", sendmsg(fd, &message, 0));
        line("sink: %s", peer("sunk"));
    }
    for (int i = 0; i < 3; i++)
        send_to(fd, "plain", peer6, SINK);
    line("sink: %s", peer("sunk"));
}

CASE(ancillary_bad, ACCELERATED)
{
    int fd = udp(host4, 5504);
    struct packet packet;
    turn_on(fd, IPPROTO_IP, IP_PKTINFO);
    peer("send %s 6000 5504 5 3 0", host4);
    wait_for(fd, POLLIN, 2000);
    packet.room = (struct iovec){packet.bytes, sizeof packet.bytes};
    packet.message = (struct msghdr){.msg_iov = &packet.room,
                                     .msg_iovlen = 1,
                                     .msg_control = packet.ancillary,
                                     .msg_controllen = 20};
    content("recvmsg, little room", packet.bytes, recvmsg(fd, &packet.message, 0));
    yes("MSG_CTRUNC", packet.message.msg_flags & MSG_CTRUNC);
    line("length %zu", packet.message.msg_controllen);
    wait_for(fd, POLLIN, 2000);
    packet.message.msg_controllen = 0;
    content("recvmsg, no room", packet.bytes, recvmsg(fd, &packet.message, 0));
    yes("MSG_CTRUNC", packet.message.msg_flags & MSG_CTRUNC);
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);

    struct to to = at(peer4, ECHO);
    char ancillary[CMSG_SPACE(sizeof(int))] = "";
    struct iovec part = {"x", 1};
    struct msghdr message = {.msg_name = &to.at,
                             .msg_namelen = to.length,
                             .msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, 250};
    value("unknown type", sendmsg(fd, &message, 0));
    *c = (struct cmsghdr){3, IPPROTO_IP, IP_TTL};
    value("length too small", sendmsg(fd, &message, 0));
    *c = (struct cmsghdr){1000, IPPROTO_IP, IP_TTL};
    value("length too large", sendmsg(fd, &message, 0));
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, IP_TTL};
    *(int *)CMSG_DATA(c) = 500;
    value("TTL 500", sendmsg(fd, &message, 0));
    message.msg_control = (void *)8;
    value("nowhere", sendmsg(fd, &message, 0));
}

CASE(ancillary_timestamps, ACCELERATED)
{
    static const int options[] = {SO_TIMESTAMP, SO_TIMESTAMPNS};
    int fd = udp(host4, 5505);
    for (int i = 0; i < 2; i++) {
        int on = 1;
        value("setsockopt", setsockopt(fd, SOL_SOCKET, options[i], &on, sizeof on));
        struct timespec before, after;
        clock_gettime(CLOCK_REALTIME, &before);
        peer("send %s 6000 5505 5 3 0", host4);
        for (int k = 0; k < 3; k++) {
            struct packet packet;
            wait_for(fd, POLLIN, 2000);
            take(fd, &packet, 0);
            clock_gettime(CLOCK_REALTIME, &after);
            bool present = false;
            for (struct cmsghdr *c = CMSG_FIRSTHDR(&packet.message); c;
                 c = CMSG_NXTHDR(&packet.message, c)) {
                if (c->cmsg_level != SOL_SOCKET)
                    continue;
                line("  type %d length %u", c->cmsg_type, (unsigned)(c->cmsg_len - CMSG_LEN(0)));
                long stamp[2];
                memcpy(stamp, CMSG_DATA(c), sizeof stamp);
                present = stamp[0] >= before.tv_sec - 1 && stamp[0] <= after.tv_sec;
            }
            yes("  between before and after", present);
        }
        on = 0;
        value("off", setsockopt(fd, SOL_SOCKET, options[i], &on, sizeof on));
    }
    int software = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
    value("SO_TIMESTAMPING",
          setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &software, sizeof software));
    peer("send %s 6000 5505 5 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
}

/* Prints what a message says of times: which of them are there, not which they are. */
static void show_times(struct packet *packet)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&packet->message); c;
         c = CMSG_NXTHDR(&packet->message, c)) {
        line("  level %d type %d length %u", c->cmsg_level, c->cmsg_type,
             (unsigned)(c->cmsg_len - CMSG_LEN(0)));
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING) {
            struct timespec now, times[3];
            clock_gettime(CLOCK_REALTIME, &now);
            memcpy(times, CMSG_DATA(c), sizeof times);
            yes("  the host's", times[0].tv_sec >= now.tv_sec - 5 && times[0].tv_sec <= now.tv_sec);
            yes("  a second one", times[1].tv_sec || times[1].tv_nsec);
            yes("  the NIC's", times[2].tv_sec || times[2].tv_nsec);
        }
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) {
            unsigned words[4];
            memcpy(words, CMSG_DATA(c), sizeof words);
            line("  errno %u, origin %u, info %u, data %u", words[0], words[1] & 0xff, words[2],
                 words[3]);
        }
    }
    yes("  MSG_CTRUNC", packet->message.msg_flags & MSG_CTRUNC);
}

static void stamp(int fd, int asked)
{
    value("SO_TIMESTAMPING", setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &asked, sizeof asked));
}

/* The kernel begins to stamp a while after it was asked to, and goes on as long as somebody asks:
 * a socket at this port, on which the first stamp is waited for. */
static int stamps_begin(int port)
{
    int fd = udp(host4, port);
    stamp(fd, SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE);
    for (uint64_t end = now_ms() + 20000; now_ms() < end;) {
        char beside[256];
        struct msghdr message = {.msg_control = beside, .msg_controllen = sizeof beside};
        struct pollfd ready = {fd, POLLIN, 0};
        peer("send %s 6000 %d 5 1 0", host4, port);
        poll(&ready, 1, 2000);
        if (recvmsg(fd, &message, 0) >= 0 && message.msg_controllen > 0)
            return fd;
    }
    line("no stamps");
    return fd;
}

CASE(ancillary_timestamping, ACCELERATED)
{
    enum {
        HOST = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE,
        NIC = SOF_TIMESTAMPING_RX_HARDWARE | SOF_TIMESTAMPING_RAW_HARDWARE,
    };
    static const int asked[] = {HOST,
                                NIC,
                                HOST | NIC,
                                SOF_TIMESTAMPING_RX_SOFTWARE,
                                SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_RAW_HARDWARE,
                                HOST | SOF_TIMESTAMPING_OPT_CMSG | SOF_TIMESTAMPING_OPT_TSONLY,
                                0};
    stamps_begin(5508);
    int fd = udp(host4, 5506);
    for (int with = 0; with < 2; with++) {
        value("SO_TIMESTAMPNS",
              setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &with, sizeof with));
        for (unsigned i = 0; i < sizeof asked / sizeof *asked; i++) {
            struct packet packet;
            stamp(fd, asked[i]);
            peer("send %s 6000 5506 5 2 0", host4);
            for (int k = 0; k < 2; k++) {
                wait_for(fd, POLLIN, 2000);
                take(fd, &packet, 0);
                show_times(&packet);
            }
        }
    }
}

/* The options with 64 bits for seconds have messages of other types, and so have the old ones that
 * were set before. */
CASE(ancillary_timestamps_new, ACCELERATED)
{
    enum { TIMESTAMP_NEW = 63, TIMESTAMPNS_NEW = 64, TIMESTAMPING_NEW = 65 };
    static const int names[] = {TIMESTAMP_NEW,   SO_TIMESTAMP,    TIMESTAMPNS_NEW,
                                SO_TIMESTAMPNS,  SO_TIMESTAMPING, TIMESTAMPING_NEW,
                                SO_TIMESTAMPING, TIMESTAMP_NEW,   TIMESTAMPING_NEW};
    const int host = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
    stamps_begin(5514);
    int fd = udp(host4, 5515);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        struct packet packet;
        bool is_word = names[i] == SO_TIMESTAMPING || names[i] == TIMESTAMPING_NEW;
        int asked = is_word ? host : 1;
        line("option %d", names[i]);
        value("setsockopt", setsockopt(fd, SOL_SOCKET, names[i], &asked, sizeof asked));
        peer("send %s 6000 5515 5 1 0", host4);
        wait_for(fd, POLLIN, 2000);
        take(fd, &packet, 0);
        show_times(&packet);
        if (i % 3 == 2) {
            asked = 0;
            value("off", setsockopt(fd, SOL_SOCKET, names[i], &asked, sizeof asked));
        }
    }
}

/* Times of sends come by the error queue; those of what is received beside it. */
CASE(ancillary_timestamping_sends, MIXED)
{
    struct packet packet;
    stamps_begin(5509);
    int fd = udp(host4, 5507);
    stamp(fd, SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID |
                  SOF_TIMESTAMPING_OPT_TSONLY | SOF_TIMESTAMPING_RX_SOFTWARE);
    for (int i = 0; i < 3; i++) {
        send_to(fd, "when", peer4, SINK);
        wait_for(fd, POLLERR, 2000);
        take(fd, &packet, MSG_ERRQUEUE);
        show_times(&packet);
    }
    take(fd, &packet, MSG_ERRQUEUE | MSG_DONTWAIT);
    line("sink: %s", peer("sunk"));
    peer("send %s 6000 5507 5 30 0", host4);
    for (int i = 0; i < 30; i++) {
        wait_for(fd, POLLIN, 2000);
        take(fd, &packet, 0);
        show_times(&packet);
    }
    stamp(fd, 0);
    send_to(fd, "never", peer4, SINK);
    take(fd, &packet, MSG_ERRQUEUE | MSG_DONTWAIT);
}
