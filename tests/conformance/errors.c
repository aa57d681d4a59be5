/* Wrong use and bad news: errno must be the kernel's. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/select.h>

CASE(errors_bad_descriptor, KERNEL)
{
    char byte = 0;
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    struct msghdr message = {0};
    struct mmsghdr many[1] = {{.msg_len = 0}};
    int file = open("/dev/null", O_RDWR);
    int bad[3] = {-1, 777, file};
    for (int i = 0; i < 3; i++) {
        int fd = bad[i];
        line("%s", i == 2 ? "a file" : i ? "closed" : "-1");
        value("bind", bind(fd, (struct sockaddr *)&address, sizeof address));
        value("connect", connect(fd, (struct sockaddr *)&address, sizeof address));
        value("send", send(fd, &byte, 1, 0));
        value("recv", recv(fd, &byte, 1, 0));
        value("sendmsg", sendmsg(fd, &message, 0));
        value("recvmsg", recvmsg(fd, &message, 0));
        value("sendmmsg", sendmmsg(fd, many, 1, 0));
        value("recvmmsg", recvmmsg(fd, many, 1, 0, NULL));
        value("getsockname", getsockname(fd, (struct sockaddr *)&address, &length));
        value("getpeername", getpeername(fd, (struct sockaddr *)&address, &length));
        value("getsockopt", getsockopt(fd, SOL_SOCKET, SO_TYPE, &length, &length));
        value("setsockopt", setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &length, sizeof length));
        value("shutdown", shutdown(fd, SHUT_RD));
        value("listen", listen(fd, 1));
        value("accept", accept(fd, NULL, NULL));
    }
}

CASE(errors_bad_arguments, ACCELERATED)
{
    int fd = udp(host4, 5301);
    struct to to = at(peer4, ECHO);
    void *nowhere = (void *)8;
    for (int i = 0; i < 4; i++) {
        send_to(fd, "good", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    value("sendto from nowhere",
          sendto(fd, nowhere, 10, 0, (struct sockaddr *)&to.at, to.length));
    value("sendto, address nowhere", sendto(fd, "x", 1, 0, nowhere, to.length));
    value("sendto, address short", sendto(fd, "x", 1, 0, (struct sockaddr *)&to.at, 3));
    value("sendto, address long", sendto(fd, "x", 1, 0, (struct sockaddr *)&to.at, 1000));
    value("sendto port 0", sendto(fd, "x", 1, 0, (struct sockaddr *)&(struct sockaddr_in){
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xc6120702)}, sizeof(struct sockaddr_in)));
    struct to six = at(peer6, ECHO);
    value("sendto AF_INET6", sendto(fd, "x", 1, 0, (struct sockaddr *)&six.at, six.length));
    value("send without address", send(fd, "x", 1, 0));
    value("send MSG_OOB", send(fd, "x", 1, MSG_OOB));
    value("sendmsg nowhere", sendmsg(fd, nowhere, 0));
    value("recvmsg nowhere", recvmsg(fd, nowhere, MSG_DONTWAIT));
    struct msghdr message = {.msg_name = &to.at, .msg_namelen = to.length,
                             .msg_iov = nowhere, .msg_iovlen = 1};
    value("sendmsg, parts nowhere", sendmsg(fd, &message, 0));
    struct iovec part = {nowhere, 5};
    message.msg_iov = &part;
    value("sendmsg, bytes nowhere", sendmsg(fd, &message, 0));
    message.msg_iovlen = 2000;
    value("sendmsg, 2000 parts", sendmsg(fd, &message, 0));
    part = (struct iovec){"x", (size_t)-1};
    message.msg_iovlen = 1;
    value("sendmsg, negative length", sendmsg(fd, &message, 0));
    value("recv MSG_OOB", recv(fd, nowhere, 1, MSG_OOB | MSG_DONTWAIT));
    value("recv, empty", recv(fd, nowhere, 1, MSG_DONTWAIT));
    value("recv MSG_ERRQUEUE, empty", recv(fd, nowhere, 1, MSG_ERRQUEUE));
    value("listen", listen(fd, 5));
    value("accept", accept(fd, NULL, NULL));
    value("bind again", bind(fd, (struct sockaddr *)&to.at, to.length));
    value("connect short", connect(fd, (struct sockaddr *)&to.at, 4));
    value("connect nowhere", connect(fd, nowhere, sizeof to.at));
    value("getsockname nowhere", getsockname(fd, nowhere, nowhere));
    value("shutdown 9", shutdown(fd, 9));
    value("socketpair", socketpair(AF_INET, SOCK_DGRAM, 0, (int[2]){0}));
    value("socket type 77", socket(AF_INET, 77, 0));
    value("socket protocol 1", socket(AF_INET, SOCK_DGRAM, 1));
}

/* The datagram is lost or not as the kernel does it when the buffer is bad. */
CASE(errors_receive_into_nowhere, ACCELERATED)
{
    int fd = udp(host4, 5302);
    peer("send %s 6000 5302 20 4 0", host4);
    await_arrivals(host4);
    wait_for(fd, POLLIN, 2000);
    value("recv into nowhere", recv(fd, (void *)8, 20, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, MSG_DONTWAIT);
    char bytes[64];
    struct sockaddr_in from;
    socklen_t length = (socklen_t)-5;
    value("recvfrom, negative address length",
          recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT, (struct sockaddr *)&from, &length));
    receive(fd, MSG_DONTWAIT);
    receive(fd, MSG_DONTWAIT);
}

/* Pointers that no program can have: the first page, and the kernel's half of the addresses. */
static void *const wild[] = {(void *)8, (void *)-1, (void *)-4097, (void *)(1UL << 63)};
enum { WILD = sizeof wild / sizeof *wild };

CASE(errors_wild_send, ACCELERATED)
{
    int fd = udp(host4, 5308);
    struct to to = at(peer4, SINK);
    for (int i = 0; i < 3; i++) {
        send_to(fd, "good", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    for (int i = 0; i < WILD; i++) {
        void *where = wild[i];
        line("%p", where);
        struct iovec part = {where, 10}, parts[2] = {{"x", 1}, part};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_name = &to.at,
                                 .msg_namelen = to.length};
        struct mmsghdr many[2] = {{.msg_hdr = message}};
        value("sendto", sendto(fd, where, 10, 0, (struct sockaddr *)&to.at, to.length));
        value("sendto nothing", sendto(fd, where, 0, 0, (struct sockaddr *)&to.at, to.length));
        value("sendto, address", sendto(fd, "x", 1, 0, where, to.length));
        value("sendmsg", sendmsg(fd, where, 0));
        value("sendmsg, bytes", sendmsg(fd, &message, 0));
        message.msg_iov = parts;
        message.msg_iovlen = 2;
        value("sendmsg, second part", sendmsg(fd, &message, 0));
        message.msg_iov = where;
        message.msg_iovlen = 1;
        value("sendmsg, parts", sendmsg(fd, &message, 0));
        message.msg_iov = parts;
        message.msg_name = where;
        value("sendmsg, address", sendmsg(fd, &message, 0));
        message.msg_name = &to.at;
        message.msg_control = where;
        message.msg_controllen = 32;
        value("sendmsg, ancillary", sendmsg(fd, &message, 0));
        value("sendmmsg", sendmmsg(fd, where, 2, 0));
        value("sendmmsg, bytes", sendmmsg(fd, many, 1, 0));
        many[1] = many[0];
        many[0].msg_hdr.msg_iov = parts;
        value("sendmmsg, bytes of the second", sendmmsg(fd, many, 2, 0));
        value("writev", writev(fd, where, 1));
        value("connect", connect(fd, where, to.length));
        value("bind", bind(fd, where, to.length));
        value("setsockopt", setsockopt(fd, IPPROTO_IP, IP_TOS, where, 4));
    }
}

CASE(errors_wild_receive, ACCELERATED)
{
    int fd = udp(host4, 5309), on = 1;
    setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    for (int i = 0; i < WILD; i++) {
        void *where = wild[i];
        char bytes[64], ancillary[64];
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        struct iovec room = {bytes, sizeof bytes}, nowhere = {where, 64};
        line("%p", where);
        peer("send %s 6000 5309 20 9 0", host4);
        await_arrivals(host4);
        wait_for(fd, POLLIN, 2000);
        value("recv", recv(fd, where, 20, MSG_DONTWAIT));
        value("recv, one byte more", recv(fd, where, 0, MSG_DONTWAIT));
        value("recvfrom, address", recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT, where, &length));
        value("recvfrom, length", recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT,
                                           (struct sockaddr *)&from, where));
        value("recvfrom, no length", recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT,
                                              (struct sockaddr *)&from, NULL));
        value("recvmsg", recvmsg(fd, where, MSG_DONTWAIT));
        struct msghdr message = {.msg_iov = &nowhere, .msg_iovlen = 1};
        value("recvmsg, bytes", recvmsg(fd, &message, MSG_DONTWAIT));
        message.msg_iov = where;
        value("recvmsg, parts", recvmsg(fd, &message, MSG_DONTWAIT));
        message = (struct msghdr){.msg_iov = &room, .msg_iovlen = 1, .msg_name = where,
                                  .msg_namelen = sizeof from};
        value("recvmsg, address", recvmsg(fd, &message, MSG_DONTWAIT));
        message = (struct msghdr){.msg_iov = &room, .msg_iovlen = 1, .msg_control = where,
                                  .msg_controllen = sizeof ancillary};
        value("recvmsg, ancillary", recvmsg(fd, &message, MSG_DONTWAIT));
        line("ancillary %zu flags %x", message.msg_controllen, message.msg_flags);
        message.msg_iovlen = 2000;
        peer("send %s 6000 5309 20 1 0", host4);
        wait_for(fd, POLLIN, 2000);
        value("recvmsg, 2000 parts", recvmsg(fd, &message, MSG_DONTWAIT));
        message = (struct msghdr){.msg_name = &from, .msg_namelen = (socklen_t)-5};
        value("recvmsg, negative length", recvmsg(fd, &message, MSG_DONTWAIT));
        value("recvmmsg", recvmmsg(fd, where, 2, MSG_DONTWAIT, NULL));
        struct mmsghdr many[1] = {{.msg_hdr = {.msg_iov = &room, .msg_iovlen = 1}}};
        value("recvmmsg, time", recvmmsg(fd, many, 1, MSG_DONTWAIT, where));
        value("readv", readv(fd, where, 1));
        while (receive(fd, MSG_DONTWAIT) >= 0)
            ;
        value("getsockname", getsockname(fd, where, &length));
        value("getsockname, length", getsockname(fd, (struct sockaddr *)&from, where));
        value("getsockopt", getsockopt(fd, SOL_SOCKET, SO_TYPE, where, &length));
        value("getsockopt, length", getsockopt(fd, SOL_SOCKET, SO_TYPE, bytes, where));
        value("FIONREAD", ioctl(fd, FIONREAD, where));
        value("FIONBIO", ioctl(fd, FIONBIO, where));
    }
}

/* (Times of ppoll and select are read by libc itself, which faults.) */
CASE(errors_wild_wait, ACCELERATED)
{
    int fd = udp(host4, 5310), set = epoll_create1(0), plain = epoll_create1(0), pipes[2];
    struct epoll_event event = {.events = EPOLLIN};
    value("pipe", pipe(pipes));
    value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    value("epoll_ctl", epoll_ctl(plain, EPOLL_CTL_ADD, pipes[0], &event));
    for (int i = 0; i < WILD; i++) {
        void *where = wild[i];
        struct timespec none = {0, 0};
        struct pollfd one = {fd, POLLIN, 0};
        fd_set set_of_one;
        line("%p", where);
        for (int ready = 0; ready < 2; ready++) {
            value("epoll_wait", epoll_wait(set, where, 4, 0));
            value("epoll_wait, kernel", epoll_wait(plain, where, 4, 0));
            value("epoll_pwait2, time", epoll_pwait2(set, &event, 1, where, NULL));
            value("epoll_pwait, mask", epoll_pwait(set, &event, 1, 0, where));
            value("ppoll, mask", ppoll(&one, 1, &none, where));
            FD_ZERO(&set_of_one);
            FD_SET(fd, &set_of_one);
            value("pselect, mask", pselect(fd + 1, &set_of_one, NULL, NULL, &none, where));
            value("select, set", select(fd + 1, where, NULL, NULL, &(struct timeval){0, 0}));
            value("select, other set",
                  select(fd + 1, &set_of_one, where, NULL, &(struct timeval){0, 0}));
            if (!ready) {
                peer("send %s 6000 5310 20 1 0", host4);
                wait_for(fd, POLLIN, 2000);
            }
        }
        receive(fd, MSG_DONTWAIT);
        value("poll", poll(where, 1, 0));
        value("poll none", poll(where, 0, 0));
        value("ppoll", ppoll(where, 2, &none, NULL));
        value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_MOD, fd, where));
        value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, pipes[0], where));
        value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_DEL, fd, where));
        value("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    }
}

/* A short address buffer is filled up to its end, and the full length is told. */
CASE(errors_short_address, ACCELERATED)
{
    int fd = udp(host4, 5303);
    peer("send %s 6000 5303 20 3 0", host4);
    wait_for(fd, POLLIN, 2000);
    char bytes[64];
    struct sockaddr_in from = {0};
    from.sin_addr.s_addr = 0xffffffff;
    socklen_t length = 4;
    value("recvfrom", recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &length));
    line("length %u port %u address %08x", length, ntohs(from.sin_port), from.sin_addr.s_addr);
    wait_for(fd, POLLIN, 2000);
    length = 0;
    value("recvfrom", recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &length));
    line("length %u", length);
    wait_for(fd, POLLIN, 2000);
    value("recvfrom no address", recvfrom(fd, bytes, sizeof bytes, 0, NULL, NULL));
    length = 3;
    value("getsockname", getsockname(fd, (struct sockaddr *)&from, &length));
    line("length %u", length);
}

CASE(errors_addrinuse, ACCELERATED)
{
    int first = udp(host4, 5304);
    peer("send %s 6000 5304 5 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(first, POLLIN, 2000);
        receive_from(first, 0);
    }
    int second = udp(host4, 5304);
    int any = udp("", 5304);
    int elsewhere = udp("192.0.2.77", 5304);
    value("close", close(first));
    struct to local = at(host4, 5304);
    value("bind after close", bind(second, (struct sockaddr *)&local.at, local.length));
    pid_t child = fork();
    if (child == 0) {
        udp(host4, 5304);
        _exit(0);
    }
    reap(child);
    value("close", close(any));
    value("close", close(elsewhere));
    int six = udp(host6, 5304);
    value("close", close(six));
}

/* Nobody listens at the peer's port: ICMP becomes errno on a connected socket. */
CASE(errors_refused, ACCELERATED)
{
    int fd = udp(host4, 5305);
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 6; i++) {
        value("send", send(fd, "fine", 4, 0));
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    connect_to(fd, peer4, REFUSED);
    value("send", send(fd, "anybody?", 8, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, MSG_DONTWAIT);
    receive(fd, MSG_DONTWAIT);
    value("send", send(fd, "anybody?", 8, 0));
    wait_for(fd, POLLIN, 2000);
    int error = -1;
    socklen_t length = sizeof error;
    value("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    line("error %s", error ? strerrorname_np(error) : "none");
    value("SO_ERROR", getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
    line("error %s", error ? strerrorname_np(error) : "none");
    wait_for(fd, POLLIN, 0);
    value("send", send(fd, "anybody?", 8, 0));
    wait_for(fd, 0, 2000);
    value("send reports it", send(fd, "anybody?", 8, 0));
}

/* An unconnected socket hears nothing of it, unless it asked with IP_RECVERR. */
CASE(errors_refused_unconnected, MIXED)
{
    int fd = udp(host4, 5306), on = 1;
    for (int i = 0; i < 4; i++) {
        send_to(fd, "fine", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    send_to(fd, "anybody?", peer4, REFUSED);
    wait_for(fd, POLLIN, 50);
    value("IP_RECVERR", setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on));
    send_to(fd, "anybody?", peer4, REFUSED);
    wait_for(fd, POLLIN, 2000);
    receive(fd, MSG_DONTWAIT);
    char bytes[64], ancillary[256];
    struct sockaddr_storage to = {0};
    struct iovec room = {bytes, sizeof bytes};
    struct msghdr message = {.msg_name = &to,
                             .msg_namelen = sizeof to,
                             .msg_iov = &room,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    long got = recvmsg(fd, &message, MSG_ERRQUEUE);
    content("recvmsg MSG_ERRQUEUE", bytes, got);
    yes("MSG_ERRQUEUE", message.msg_flags & MSG_ERRQUEUE);
    print_address("to", &to);
    value("recvmsg MSG_ERRQUEUE", recvmsg(fd, &message, MSG_ERRQUEUE));
}

/* No route: the kernel's errno. */
CASE(errors_unreachable, ACCELERATED)
{
    int fd = udp(host4, 5307);
    for (int i = 0; i < 3; i++) {
        send_to(fd, "fine", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    send_to(fd, "x", "203.0.113.9", 9);
    connect_to(fd, "203.0.113.9", 9);
    int six = udp(host6, 5307);
    send_to(six, "x", "2001:db8::9", 9);
}
