/* What stays with the kernel on purpose, and must work all the same. */
#include "case.h"

#include <netdb.h>

CASE(kernel_loopback, KERNEL)
{
    int left = udp("127.0.0.1", 6401), right = udp("127.0.0.1", 6402);
    for (int i = 0; i < 3; i++) {
        send_to(left, "over loopback", "127.0.0.1", 6402);
        wait_for(right, POLLIN, 2000);
        receive_from(right, 0);
        send_to(right, "and back", "127.0.0.1", 6401);
        wait_for(left, POLLIN, 2000);
        receive_from(left, 0);
    }
    int six = udp("::1", 6403);
    send_to(six, "to itself", "::1", 6403);
    wait_for(six, POLLIN, 2000);
    receive_from(six, 0);
}

CASE(kernel_broadcast, KERNEL)
{
    int fd = udp("", 6404), on = 1;
    send_to(fd, "x", "198.18.7.255", SINK);
    send_to(fd, "x", "255.255.255.255", SINK);
    value("SO_BROADCAST", setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on));
    send_to(fd, "x", "198.18.7.255", SINK);
    send_to(fd, "x", "255.255.255.255", SINK);
    connect_to(fd, "198.18.7.255", SINK);
    value("send", send(fd, "x", 1, 0));
}

CASE(kernel_multicast, KERNEL)
{
    int fd = udp("", 6405);
    struct ip_mreqn group = {0};
    inet_pton(AF_INET, "239.1.2.3", &group.imr_multiaddr);
    inet_pton(AF_INET, host4, &group.imr_address);
    value("IP_ADD_MEMBERSHIP", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    value("again", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    value("IP_MULTICAST_IF", setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &group, sizeof group));
    send_to(fd, "to the group", "239.1.2.3", 6405);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    value("IP_DROP_MEMBERSHIP",
          setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group));
}

/* TCP beside an accelerated UDP socket: listener, connection, poll over both. */
CASE(kernel_tcp_beside, MIXED)
{
    int fd = udp(host4, 6406), on = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    struct to local = at(host4, 6406);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    value("bind", bind(listener, (struct sockaddr *)&local.at, local.length));
    value("listen", listen(listener, 4));
    value("connect", connect(client, (struct sockaddr *)&local.at, local.length));
    wait_for(listener, POLLIN, 2000);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    done("accept4", server);
    for (int i = 0; i < 3; i++) {
        value("send", send(client, "by TCP", 6, MSG_NOSIGNAL));
        peer("send %s 6000 6406 5 1 0", host4);
        wait_for(fd, POLLIN, 2000);
        wait_for(server, POLLIN, 2000);
        struct pollfd set[2] = {{fd, POLLIN, 0}, {server, POLLIN, 0}};
        int count = poll(set, 2, 1000);
        readiness("udp", count, (unsigned short)set[0].revents);
        readiness("tcp", count, (unsigned short)set[1].revents);
        receive(fd, 0);
        receive(server, 0);
    }
    value("shutdown", shutdown(client, SHUT_WR));
    receive(server, 0);
    value("close", close(server));
    receive(client, 0);
}

CASE(kernel_unix_sockets, KERNEL)
{
    int pair[2];
    char bytes[32];
    value("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    value("send", send(pair[0], "datagram", 8, 0));
    content("recv", bytes, recv(pair[1], bytes, sizeof bytes, 0));
    struct mmsghdr many[2] = {0};
    struct iovec parts[2] = {{"one", 3}, {"two", 3}};
    for (int i = 0; i < 2; i++)
        many[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    value("sendmmsg", sendmmsg(pair[1], many, 2, 0));
    receive(pair[0], 0);
    receive(pair[0], 0);
    receive(pair[0], MSG_DONTWAIT);
    value("close", close(pair[1]));
    value("send", send(pair[0], "x", 1, MSG_NOSIGNAL));
}

/* getaddrinfo opens and closes sockets inside libc, where no hook sees them. */
CASE(kernel_getaddrinfo, MIXED)
{
    int fd = udp(host4, 6407);
    for (int i = 0; i < 3; i++) {
        struct addrinfo *found = NULL, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM};
        value("getaddrinfo", getaddrinfo("localhost", "7007", &hints, &found));
        freeaddrinfo(found);
        int file = open("/etc/hostname", O_RDONLY);
        char byte;
        value("read", read(file, &byte, 1));
        value("recv on a file", recv(file, &byte, 1, 0));
        close(file);
        send_to(fd, "echo", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
}

/* io_uring would carry sockets past the hooks: a runtime that asks is told to use epoll, by ENOSYS.
 * Natively the answer is the kernel's. This line may differ, so it says what the column wants. */
CASE(kernel_io_uring_fallback, ACCELERATED)
{
    int fd = udp(host4, 6408);
    for (int i = 0; i < 3; i++) {
        send_to(fd, "echo", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    char parameters[120] = {0};
    long ring = syscall(SYS_io_uring_setup, 4, parameters);
    bool refused = ring == -1 && errno == ENOSYS;
    bool kernels = ring >= 0 || errno == ENOSYS || errno == EPERM;
    yes("the answer of this column", getenv("LD_PRELOAD") ? refused : kernels);
}
