/* Datagrams of every size: up to the MTU, above it, above what UDP can carry. */
#include "case.h"

static char big[66000];

static void fill(void)
{
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)('a' + i % 23);
}

static void there_and_back(int fd, long size)
{
    char call[40];
    snprintf(call, sizeof call, "send of %ld", size);
    value(call, send(fd, big, (size_t)size, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
}

CASE(sizes_up_to_mtu, ACCELERATED)
{
    static const long sizes[] = {1, 2, 17, 18, 19, 255, 256, 1000, 1023, 1024, 1471, 1472};
    fill();
    int fd = udp(host4, 5201);
    connect_to(fd, peer4, ECHO);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        there_and_back(fd, sizes[i]);
    int six = udp(host6, 5201);
    connect_to(six, peer6, ECHO);
    there_and_back(six, 1);
    there_and_back(six, 1451);
    there_and_back(six, 1452);
}

/* Larger than the MTU: sent in fragments, received in fragments. The kernel's business. */
CASE(sizes_fragmented, MIXED)
{
    fill();
    int fd = udp(host4, 5202);
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 4; i++)
        there_and_back(fd, 100);
    there_and_back(fd, 1473);
    there_and_back(fd, 4000);
    there_and_back(fd, 65507);
    int six = udp(host6, 5202);
    connect_to(six, peer6, ECHO);
    there_and_back(six, 1453);
    there_and_back(six, 9000);
    there_and_back(fd, 200);
}

/* An unconnected server gets fragments and whole datagrams from one peer, in order. */
CASE(sizes_fragments_received, MIXED)
{
    int fd = udp(host4, 5203);
    peer("send %s 6000 5203 10 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    peer("send %s 6000 5203 5000 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    char bytes[100];
    content("recv of 100", bytes, recv(fd, bytes, sizeof bytes, 0));
    peer("send %s 6000 5203 3000 2 0", host4);
    for (int i = 0; i < 2; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    peer("send %s 6000 5203 12 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
}

CASE(sizes_too_big, ACCELERATED)
{
    fill();
    int fd = udp(host4, 5204);
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 3; i++)
        there_and_back(fd, 50);
    value("send of 65508", send(fd, big, 65508, 0));
    value("send of 66000", send(fd, big, 66000, 0));
    struct iovec parts[2] = {{big, 65000}, {big, 600}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    value("sendmsg of 65600", sendmsg(fd, &message, 0));
    int six = udp(host6, 5204);
    connect_to(six, peer6, ECHO);
    value("send of 65528", send(six, big, 65528, 0));
}

/* With IP_PMTUDISC_DO nothing is fragmented: EMSGSIZE instead. */
CASE(sizes_pmtudisc, ACCELERATED)
{
    fill();
    int fd = udp(host4, 5205), mode = IP_PMTUDISC_DO;
    connect_to(fd, peer4, ECHO);
    value("IP_MTU_DISCOVER", setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &mode, sizeof mode));
    there_and_back(fd, 1472);
    value("send of 1473", send(fd, big, 1473, 0));
    there_and_back(fd, 1472);
    int mtu = 0;
    socklen_t length = sizeof mtu;
    value("IP_MTU", getsockopt(fd, IPPROTO_IP, IP_MTU, &mtu, &length));
    line("mtu %d", mtu);
    mode = IP_PMTUDISC_OMIT;
    value("IP_MTU_DISCOVER", setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &mode, sizeof mode));
    there_and_back(fd, 1000);
}

/* UDP_SEGMENT: one call, several datagrams. */
CASE(sizes_udp_segment, ACCELERATED)
{
    fill();
    enum { UDP_SEGMENT_ = 103 };
    int fd = udp(host4, 5206), segment = 500;
    connect_to(fd, peer4, SINK);
    peer("reset");
    value("UDP_SEGMENT", setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT_, &segment, sizeof segment));
    int back = 0;
    socklen_t length = sizeof back;
    value("get", getsockopt(fd, IPPROTO_UDP, UDP_SEGMENT_, &back, &length));
    line("segment %d", back);
    value("send of 2200", send(fd, big, 2200, 0));
    line("sink: %s", peer("sunk"));
    value("send of 500", send(fd, big, 500, 0));
    value("send of 30", send(fd, big, 30, 0));
    line("sink: %s", peer("sunk"));
    segment = 0;
    value("UDP_SEGMENT off", setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT_, &segment, sizeof segment));
    peer("reset");
    uint16_t each = 300;
    char ancillary[CMSG_SPACE(sizeof each)] = "";
    struct iovec all = {big, 1000};
    struct msghdr message = {.msg_iov = &all,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = IPPROTO_UDP;
    c->cmsg_type = UDP_SEGMENT_;
    c->cmsg_len = CMSG_LEN(sizeof each);
    memcpy(CMSG_DATA(c), &each, sizeof each);
    value("sendmsg with UDP_SEGMENT", sendmsg(fd, &message, 0));
    line("sink: %s", peer("sunk"));
    segment = 2000;
    setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT_, &segment, sizeof segment);
    value("send, segment above the MTU", send(fd, big, 4000, 0));
    segment = 1;
    setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT_, &segment, sizeof segment);
    value("send, too many segments", send(fd, big, 1000, 0));
    segment = 70000;
    value("UDP_SEGMENT 70000", setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT_, &segment, sizeof segment));
}

/* UDP_GRO: whatever is put together, all bytes come and the segment size is told. */
CASE(sizes_udp_gro, ACCELERATED)
{
    enum { UDP_GRO_ = 104 };
    int fd = udp(host4, 5207), on = 1;
    value("UDP_GRO", setsockopt(fd, IPPROTO_UDP, UDP_GRO_, &on, sizeof on));
    peer("segments %s 6000 5207 3300 500", host4);
    long total = 0;
    bool fits = true;
    while (total < 3300) {
        static char bytes[70000];
        char ancillary[256];
        struct iovec all = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &all,
                                 .msg_iovlen = 1,
                                 .msg_control = ancillary,
                                 .msg_controllen = sizeof ancillary};
        struct pollfd entry = {fd, POLLIN, 0};
        if (poll(&entry, 1, 2000) != 1)
            break;
        long got = recvmsg(fd, &message, 0);
        long segment = got;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            int told = 0;
            memcpy(&told, CMSG_DATA(c), sizeof told);
            segment = told;
        }
        fits = fits && (segment == 500 || got < 500);
        for (long i = 0; i < got; i++)
            fits = fits && bytes[i] == (char)('a' + (total + i) / 500);
        total += got;
    }
    line("total %ld", total);
    yes("segments of 500 in order", fits);
}

/* All segments have arrived before the first look: one message. */
CASE(sizes_udp_gro_joined, ACCELERATED)
{
    enum { UDP_GRO_ = 104 };
    int fd = udp(host4, 5208), on = 1;
    value("UDP_GRO", setsockopt(fd, IPPROTO_UDP, UDP_GRO_, &on, sizeof on));
    peer("segments %s 6000 5208 3300 500", host4);
    await_arrivals(host4);
    static char bytes[70000];
    char ancillary[256];
    struct iovec parts[2] = {{bytes, 700}, {bytes + 700, sizeof bytes - 700}};
    struct msghdr message = {.msg_iov = parts,
                             .msg_iovlen = 2,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    value("recvmsg", recvmsg(fd, &message, MSG_DONTWAIT));
    line("flags %d", message.msg_flags);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        int told = 0;
        memcpy(&told, CMSG_DATA(c), sizeof told);
        line("level %d type %d value %d", c->cmsg_level, c->cmsg_type, told);
    }
    bool fits = true;
    for (long i = 0; i < 3300; i++)
        fits = fits && bytes[i] == (char)('a' + i / 500);
    yes("segments of 500 in order", fits);
    value("recv", recv(fd, bytes, sizeof bytes, MSG_DONTWAIT));
    line("without the option nothing is joined");
    on = 0;
    value("UDP_GRO", setsockopt(fd, IPPROTO_UDP, UDP_GRO_, &on, sizeof on));
    peer("segments %s 6000 5208 1500 500", host4);
    await_arrivals(host4);
    for (int i = 0; i < 4; i++)
        value("recv", recv(fd, bytes, sizeof bytes, MSG_DONTWAIT));
}
