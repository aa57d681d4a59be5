/* setsockopt, getsockopt, fcntl and ioctl: values read back, values obeyed. */
#include "case.h"

static void set_and_get(int fd, const char *name, int level, int option, int number)
{
    char call[64];
    snprintf(call, sizeof call, "set %s %d", name, number);
    value(call, setsockopt(fd, level, option, &number, sizeof number));
    int back = -1;
    socklen_t length = sizeof back;
    snprintf(call, sizeof call, "get %s", name);
    if (value(call, getsockopt(fd, level, option, &back, &length)) == 0)
        line("  %d length %u", back, length);
}

#define SET(FD, LEVEL, OPTION, NUMBER) set_and_get(FD, #OPTION, LEVEL, OPTION, NUMBER)

static void echo_once(int fd)
{
    send_to(fd, "echo", peer4, ECHO);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
}

CASE(options_socket_level, ACCELERATED)
{
    int fd = udp(host4, 5401);
    for (int i = 0; i < 2; i++) {
        SET(fd, SOL_SOCKET, SO_RCVBUF, 100000);
        SET(fd, SOL_SOCKET, SO_RCVBUF, 1);
        SET(fd, SOL_SOCKET, SO_RCVBUF, 1 << 28);
        SET(fd, SOL_SOCKET, SO_SNDBUF, 100000);
        SET(fd, SOL_SOCKET, SO_SNDBUF, 1);
        SET(fd, SOL_SOCKET, SO_SNDBUF, 1 << 28);
        SET(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        SET(fd, SOL_SOCKET, SO_REUSEADDR, 0);
        SET(fd, SOL_SOCKET, SO_REUSEPORT, 1);
        SET(fd, SOL_SOCKET, SO_BROADCAST, 1);
        SET(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        SET(fd, SOL_SOCKET, SO_PRIORITY, 3);
        SET(fd, SOL_SOCKET, SO_NO_CHECK, 1);
        SET(fd, SOL_SOCKET, SO_NO_CHECK, 0);
        SET(fd, SOL_SOCKET, SO_RCVLOWAT, 5);
        SET(fd, SOL_SOCKET, SO_TYPE, 1);
        SET(fd, SOL_SOCKET, SO_DOMAIN, 1);
        SET(fd, SOL_SOCKET, SO_PROTOCOL, 1);
        SET(fd, SOL_SOCKET, SO_ACCEPTCONN, 1);
        SET(fd, SOL_SOCKET, SO_OOBINLINE, 1);
        SET(fd, SOL_SOCKET, 9999, 1);
        SET(fd, 9999, 1, 1);
        SET(fd, IPPROTO_TCP, 1, 1);
        echo_once(fd);
        echo_once(fd);
    }
}

CASE(options_ip_level, ACCELERATED)
{
    int fd = udp(host4, 5402);
    SET(fd, IPPROTO_IP, IP_TOS, 0x10);
    SET(fd, IPPROTO_IP, IP_TTL, 33);
    SET(fd, IPPROTO_IP, IP_TTL, 300);
    SET(fd, IPPROTO_IP, IP_TTL, -1);
    SET(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT);
    SET(fd, IPPROTO_IP, IP_MTU_DISCOVER, 9);
    SET(fd, IPPROTO_IP, IP_RECVTOS, 1);
    SET(fd, IPPROTO_IP, IP_RECVTTL, 1);
    SET(fd, IPPROTO_IP, IP_PKTINFO, 1);
    SET(fd, IPPROTO_IP, IP_MULTICAST_TTL, 4);
    SET(fd, IPPROTO_IP, IP_MULTICAST_LOOP, 0);
    SET(fd, IPPROTO_IP, IP_FREEBIND, 1);
    SET(fd, IPPROTO_IP, IP_MTU, 1);
    SET(fd, IPPROTO_IP, 222, 1);
    SET(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    for (int i = 0; i < 4; i++)
        echo_once(fd);
    int six = udp(host6, 5402);
    SET(six, IPPROTO_IPV6, IPV6_TCLASS, 0x20);
    SET(six, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44);
    SET(six, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    SET(six, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
    SET(six, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1);
    SET(six, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    send_to(six, "echo", peer6, ECHO);
    wait_for(six, POLLIN, 2000);
    receive_from(six, 0);
}

/* The peer sees the TOS and TTL that were set. */
CASE(options_tos_ttl_on_the_wire, ACCELERATED)
{
    int fd = udp(host4, 5403), number = 0x28;
    peer("reset");
    send_to(fd, "plain", peer4, SINK);
    line("sink: %s", peer("sunk"));
    setsockopt(fd, IPPROTO_IP, IP_TOS, &number, sizeof number);
    number = 17;
    setsockopt(fd, IPPROTO_IP, IP_TTL, &number, sizeof number);
    send_to(fd, "marked", peer4, SINK);
    line("sink: %s", peer("sunk"));
    int six = udp(host6, 5403);
    number = 0x50;
    setsockopt(six, IPPROTO_IPV6, IPV6_TCLASS, &number, sizeof number);
    number = 19;
    setsockopt(six, IPPROTO_IPV6, IPV6_UNICAST_HOPS, &number, sizeof number);
    send_to(six, "marked", peer6, SINK);
    line("sink: %s", peer("sunk"));
}

CASE(options_bad_values, ACCELERATED)
{
    int fd = udp(host4, 5404), number = 1;
    for (int i = 0; i < 3; i++)
        echo_once(fd);
    void *nowhere = (void *)8;
    socklen_t length = sizeof number;
    value("set, value nowhere", setsockopt(fd, SOL_SOCKET, SO_RCVBUF, nowhere, sizeof number));
    value("set, short", setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &number, 2));
    value("set, negative length", setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &number, (socklen_t)-1));
    value("get, value nowhere", getsockopt(fd, SOL_SOCKET, SO_RCVBUF, nowhere, &length));
    value("get, length nowhere", getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &number, nowhere));
    length = 2;
    number = 0;
    value("get, short", getsockopt(fd, SOL_SOCKET, SO_TYPE, &number, &length));
    line("  %d length %u", number, length);
    length = (socklen_t)-1;
    value("get, negative length", getsockopt(fd, SOL_SOCKET, SO_TYPE, &number, &length));
    struct timeval time = {.tv_usec = 2000000};
    value("SO_RCVTIMEO, too many us",
          setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    value("SO_RCVTIMEO, short", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, 4));
}

/* Not before so many milliseconds, and soon after: a thread may be kept from running a while. */
static bool about(uint64_t start, uint64_t milliseconds)
{
    uint64_t took = now_ms() - start;
    return took + 10 >= milliseconds && took <= milliseconds + 1000;
}

CASE(options_rcvtimeo, ACCELERATED)
{
    int fd = udp(host4, 5405);
    struct timeval time = {.tv_usec = 250000}, back = {0};
    socklen_t length = sizeof back;
    value("SO_RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    value("get", getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &back, &length));
    yes("250 ms within 10 ms",
        back.tv_sec == 0 && back.tv_usec >= 240000 && back.tv_usec <= 260000);
    uint64_t start = now_ms();
    receive(fd, 0);
    yes("after 250 ms", about(start, 250));
    struct mmsghdr many[2] = {0};
    start = now_ms();
    value("recvmmsg", recvmmsg(fd, many, 2, 0, NULL));
    yes("after 250 ms", about(start, 250));
    time.tv_sec = 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    start = now_ms();
    peer("late %s 6000 5405 5 2 100", host4);
    receive_from(fd, 0);
    yes("after 100 ms", about(start, 100));
    receive_from(fd, 0);
    start = now_ms();
    receive(fd, MSG_DONTWAIT);
    yes("at once", about(start, 0));
    time = (struct timeval){0};
    value("SO_RCVTIMEO off", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    start = now_ms();
    peer("late %s 6000 5405 5 2 400", host4);
    receive_from(fd, 0);
    yes("after 400 ms", about(start, 400));
    time.tv_usec = 250000;
    value("SO_SNDTIMEO", setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time));
    value("get", getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &back, &length));
    yes("250 ms within 10 ms",
        back.tv_sec == 0 && back.tv_usec >= 240000 && back.tv_usec <= 260000);
    value("get", getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &back, &length));
    yes("none", back.tv_sec == 0 && back.tv_usec == 0);
}

CASE(options_nonblocking, ACCELERATED)
{
    int fd = udp(host4, 5406), on = 1;
    for (int i = 0; i < 3; i++)
        echo_once(fd);
    value("FIONBIO", ioctl(fd, FIONBIO, &on));
    yes("O_NONBLOCK", fcntl(fd, F_GETFL) & O_NONBLOCK);
    receive(fd, 0);
    value("F_SETFL 0", fcntl(fd, F_SETFL, 0));
    yes("O_NONBLOCK", fcntl(fd, F_GETFL) & O_NONBLOCK);
    value("F_SETFL O_RDONLY|O_NONBLOCK", fcntl(fd, F_SETFL, O_RDONLY | O_NONBLOCK));
    yes("O_RDWR", (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    receive(fd, 0);
    on = 0;
    value("FIONBIO off", ioctl(fd, FIONBIO, &on));
    receive(fd, MSG_DONTWAIT);
    int second = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    yes("O_NONBLOCK", fcntl(second, F_GETFL) & O_NONBLOCK);
    value("FD_CLOEXEC", fcntl(second, F_GETFD));
    value("FIONCLEX", ioctl(second, FIONCLEX));
    value("FD_CLOEXEC", fcntl(second, F_GETFD));
    struct to local = at(host4, 5407);
    value("bind", bind(second, (struct sockaddr *)&local.at, local.length));
    receive(second, 0);
    echo_once(second);
    value("TCGETS", ioctl(second, 0x5401, &on));
    value("unknown ioctl", ioctl(second, 0x7777, &on));
}

/* Reads until nothing is left; gives how many were read, and the last loss that one told of. */
static int read_all(int fd, uint32_t *lost)
{
    int received = 0;
    char bytes[2048], ancillary[64];
    for (;; received++) {
        struct iovec room = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &room,
                                 .msg_iovlen = 1,
                                 .msg_control = ancillary,
                                 .msg_controllen = sizeof ancillary};
        if (recvmsg(fd, &message, MSG_DONTWAIT) < 0)
            return received;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL)
                memcpy(lost, CMSG_DATA(c), sizeof *lost);
    }
}

/* Ten thousand datagrams come to a program that sleeps: many times what a queue of the NIC holds.
 * As many as the buffer has room for are there afterwards, the loss is known exactly, and the
 * socket beside it has lost nothing. */
CASE(options_rcvbuf_asleep, ACCELERATED)
{
    enum { COUNT = 10000 };
    int fd = udp(host4, 5412), beside = udp(host4, 5413), on = 1;
    value("SO_RXQ_OVFL", setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on));
    peer("send %s 6000 5412 64 %d 20", host4, COUNT);
    pause_ms(1000);
    uint32_t lost = 0;
    int received = read_all(fd, &lost);
    value("as many as the buffer holds", received);
    /* A datagram carries the loss that was counted before it was queued. */
    peer("send %s 6000 5412 64 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    value("read", read_all(fd, &lost));
    value("received and lost", received + (long)lost);
    peer("send %s 6000 5413 64 3 0", host4);
    int others = 0;
    while (others < 3 && wait_for(beside, POLLIN, 2000) == 1)
        others += read_all(beside, &lost);
    value("beside it", others);
}

/* Waits until a datagram to `fd` has come, behind all that were sent before it. */
static void await(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    yes("it comes", poll(&one, 1, 5000) == 1);
}

/* Fills the receive buffer and prints how many datagrams of a size it has kept. */
static void fill(const char *host, int buffer, int size)
{
    int fd = udp(host, 5414), beside = udp(host, 5415), on = 1, bytes = buffer;
    if (buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    socklen_t length = sizeof bytes;
    getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, &length);
    setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
    int count = bytes / 800 + 20;
    peer("send %s 6000 5414 %d %d 2", host, size, count);
    peer("send %s 6000 5415 1 1 0", host);
    await(beside);
    uint32_t lost = 0;
    int kept = read_all(fd, &lost);
    /* A datagram carries the loss that was counted before it was queued. */
    peer("send %s 6000 5414 1 1 0", host);
    await(fd);
    int one = read_all(fd, &lost);
    line("buffer %d, size %d: of %d kept %d, lost %u, then %d", bytes, size, count, kept, lost,
         one);
    close(fd);
    close(beside);
}

/* A receive buffer keeps as many datagrams of each size as the kernel's does, and the loss is
 * known. What one costs depends on the kernel's version; these are about the steps of 6.18. */
CASE(options_rcvbuf_keeps, ACCELERATED)
{
    static const int buffers[] = {0, 1, 2304, 8192, 65536};
    static const int sizes4[] = {0, 64, 197, 198, 645, 646, 1472};
    static const int sizes6[] = {0, 184, 185, 632, 633, 1452};
    for (size_t b = 0; b < sizeof buffers / sizeof *buffers; b++) {
        for (size_t s = 0; s < sizeof sizes4 / sizeof *sizes4; s++)
            fill(host4, buffers[b], sizes4[s]);
        for (size_t s = 0; s < sizeof sizes6 / sizeof *sizes6; s++)
            fill(host6, buffers[b], sizes6[s]);
    }
    fill(host4, 200000, 64);
}

/* Sockets with large buffers that nobody reads take nothing from the one beside them. */
CASE(options_rcvbuf_others, ACCELERATED)
{
    enum { UNREAD = 6, FLOOD = 4000, ROUNDS = 20, BURST = 50 };
    int beside = udp(host4, 5416), large = 64 << 20;
    for (int i = 0; i < UNREAD; i++) {
        int fd = udp(host4, 5420 + i);
        value("SO_RCVBUFFORCE",
              setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large));
    }
    for (int k = 0; k < FLOOD / 100; k++) {
        for (int i = 0; i < UNREAD; i++)
            peer("send %s 6000 %d 64 100 1", host4, 5420 + i);
        peer("send %s 6000 5416 5 1 0", host4);
        struct pollfd one = {.fd = beside, .events = POLLIN};
        char bytes[8];
        if (poll(&one, 1, 5000) != 1 || recv(beside, bytes, sizeof bytes, MSG_DONTWAIT) != 5)
            line("lost in the flood");
    }
    int received = 0;
    for (int i = 0; i < ROUNDS; i++) {
        peer("send %s 6000 5416 64 %d 1", host4, BURST);
        uint32_t lost = 0;
        for (int got = 0; got < BURST;) {
            struct pollfd one = {.fd = beside, .events = POLLIN};
            if (poll(&one, 1, 2000) != 1)
                break;
            int more = read_all(beside, &lost);
            got += more;
            received += more;
        }
    }
    value("received beside them", received);
}

/* A small receive buffer overflows; what fits is kept in order, the loss is counted. */
CASE(options_rcvbuf_overflow, ACCELERATED)
{
    int fd = udp(host4, 5408), size = 8192, on = 1, received = 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    value("SO_RXQ_OVFL", setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on));
    peer("send %s 6000 5408 1000 200 0", host4);
    await_arrivals(host4);
    uint32_t lost = 0;
    char bytes[2048], ancillary[64], first = 0;
    for (;;) {
        struct iovec room = {bytes, sizeof bytes};
        struct msghdr message = {.msg_iov = &room,
                                 .msg_iovlen = 1,
                                 .msg_control = ancillary,
                                 .msg_controllen = sizeof ancillary};
        if (recvmsg(fd, &message, MSG_DONTWAIT) < 0)
            break;
        if (received++ == 0)
            first = bytes[0];
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL)
                memcpy(&lost, CMSG_DATA(c), sizeof lost);
    }
    yes("the first is there", first == 'a');
    yes("some are received", received > 0);
    yes("most are lost", received < 100);
    /* A datagram carries the loss that was counted before it was queued. */
    peer("send %s 6000 5408 1000 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    struct iovec room = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &room,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    value("recvmsg", recvmsg(fd, &message, 0));
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL)
            memcpy(&lost, CMSG_DATA(c), sizeof lost);
    yes("received and lost add up", received + (int)lost == 200);
}

CASE(options_bindtodevice, ACCELERATED)
{
    int fd = udp("", 5409);
    value("SO_BINDTODEVICE", setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "byp-s", 6));
    char name[16] = "";
    socklen_t length = sizeof name;
    value("get", getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
    line("device %s", name);
    peer("send %s 6000 5409 5 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    value("no such device", setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "byp-x", 6));
    int local = udp("127.0.0.1", 5410);
    send_to(local, "x", "127.0.0.1", 5409);
    pause_ms(20);
    receive(fd, MSG_DONTWAIT);
}

CASE(options_fionread, ACCELERATED)
{
    int fd = udp(host4, 5411), unread = -1;
    value("FIONREAD", ioctl(fd, FIONREAD, &unread));
    line("unread %d", unread);
    peer("send %s 6000 5411 11 1 0", host4);
    peer("send %s 6000 5411 7 2 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        value("FIONREAD", ioctl(fd, FIONREAD, &unread));
        line("unread %d", unread);
        receive(fd, 0);
    }
    value("FIONREAD", ioctl(fd, FIONREAD, &unread));
    line("unread %d", unread);
    value("TIOCOUTQ", ioctl(fd, TIOCOUTQ, &unread));
    line("unsent %d", unread);
}
