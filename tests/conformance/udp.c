/* Bind, connect, send and receive: the plain life of a UDP socket. */
#include "case.h"

CASE(udp_echo_server, ACCELERATED)
{
    int fd = udp(host4, 5001);
    peer("send %s 6000 5001 5 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    receive(fd, MSG_DONTWAIT);
    peer("reset");
    send_to(fd, "answer", peer4, SINK);
    send_to(fd, "another", peer4, SINK);
    line("sink: %s", peer("sunk"));
    value("close", close(fd));
}

CASE(udp_echo_client, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    done("socket", fd);
    for (int i = 0; i < 4; i++) {
        send_to(fd, "question", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    struct sockaddr_storage own = {0};
    socklen_t length = sizeof own;
    value("getsockname", getsockname(fd, (struct sockaddr *)&own, &length));
    print_address("own", &own);
    value("getpeername", getpeername(fd, (struct sockaddr *)&own, &length));
    value("close", close(fd));
    value("close again", close(fd));
}

CASE(udp_echo_ipv6, ACCELERATED)
{
    int fd = udp(host6, 5001);
    peer("send %s 6000 5001 9 2 0", host6);
    for (int i = 0; i < 2; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    for (int i = 0; i < 3; i++) {
        send_to(fd, "question six", peer6, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    connect_to(fd, peer6, ECHO2);
    value("send", send(fd, "connected", 9, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
}

CASE(udp_connect, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    done("socket", fd);
    value("send without address", send(fd, "x", 1, 0));
    connect_to(fd, peer4, ECHO);
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    value("getpeername", getpeername(fd, (struct sockaddr *)&address, &length));
    print_address("peer", &address);
    length = sizeof address;
    value("getsockname", getsockname(fd, (struct sockaddr *)&address, &length));
    print_address("own", &address);
    for (int i = 0; i < 3; i++) {
        value("send", send(fd, "by connect", 10, 0));
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    value("write", write(fd, "written", 7));
    wait_for(fd, POLLIN, 2000);
    char bytes[64];
    content("read", bytes, read(fd, bytes, sizeof bytes));
    /* An address may still be given, as long as it is one. */
    send_to(fd, "elsewhere", peer4, ECHO2);
    pause_ms(50);
    receive(fd, MSG_DONTWAIT);
}

CASE(udp_reconnect, ACCELERATED)
{
    int fd = udp(host4, 5002);
    connect_to(fd, peer4, ECHO);
    value("send", send(fd, "first", 5, 0));
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    connect_to(fd, peer4, ECHO2);
    value("send", send(fd, "second", 6, 0));
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    value("connect AF_UNSPEC", connect(fd, &none, sizeof none));
    value("send", send(fd, "x", 1, 0));
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    value("getpeername", getpeername(fd, (struct sockaddr *)&address, &length));
    value("getsockname", getsockname(fd, (struct sockaddr *)&address, &length));
    print_address("own", &address);
    peer("send %s 6000 5002 4 2 0", host4);
    for (int i = 0; i < 2; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
}

CASE(udp_connected_hears_its_peer_only, ACCELERATED)
{
    int fd = udp(host4, 5003);
    connect_to(fd, peer4, 6001);
    peer("send %s 6000 5003 4 2 0", host4);
    pause_ms(50);
    receive(fd, MSG_DONTWAIT);
    peer("send %s 6001 5003 4 3 0", host4);
    for (int i = 0; i < 3; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
}

/* iperf3: a connected socket and its unconnected twin share a port; the connected one wins. */
CASE(udp_demux, ACCELERATED)
{
    int on = 1, sockets[2];
    struct to local = at(host4, 5004);
    for (int i = 0; i < 2; i++) {
        sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(sockets[i], SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        value("bind", bind(sockets[i], (struct sockaddr *)&local.at, local.length));
    }
    connect_to(sockets[0], peer4, 6000);
    peer("send %s 6000 5004 4 2 0", host4);
    peer("send %s 6001 5004 5 2 0", host4);
    for (int i = 0; i < 2; i++) {
        line("socket %d", i);
        for (int k = 0; k < 3; k++)
            if (wait_for(sockets[i], POLLIN, k < 2 ? 2000 : 100) == 1)
                receive_from(sockets[i], 0);
    }
    line("now connected after its twin was made");
    int later = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(later, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    value("bind", bind(later, (struct sockaddr *)&local.at, local.length));
    connect_to(later, peer4, 6002);
    peer("send %s 6002 5004 6 1 0", host4);
    wait_for(later, POLLIN, 2000);
    receive_from(later, 0);
    value("close", close(later));
}

CASE(udp_port_zero, ACCELERATED)
{
    int fd = udp(host4, 0);
    struct sockaddr_storage own = {0};
    socklen_t length = sizeof own;
    value("getsockname", getsockname(fd, (struct sockaddr *)&own, &length));
    print_address("own", &own);
    for (int i = 0; i < 3; i++) {
        send_to(fd, "to echo", peer4, ECHO);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    int second = udp(host4, 0);
    struct sockaddr_storage other = {0};
    length = sizeof other;
    getsockname(second, (struct sockaddr *)&other, &length);
    yes("ports differ", memcmp(&own, &other, sizeof own) != 0);
}

CASE(udp_zero_length, ACCELERATED)
{
    int fd = udp(host4, 5005);
    peer("send %s 6000 5005 0 2 0", host4);
    wait_for(fd, POLLIN, 2000);
    int unread = -1;
    value("FIONREAD", ioctl(fd, FIONREAD, &unread));
    line("unread %d", unread);
    receive_from(fd, 0);
    wait_for(fd, POLLIN, 2000);
    char bytes[8];
    value("read", read(fd, bytes, sizeof bytes));
    receive(fd, MSG_DONTWAIT);
    peer("reset");
    send_to(fd, "", peer4, SINK);
    connect_to(fd, peer4, SINK);
    value("send of nothing", send(fd, NULL, 0, 0));
    value("write of nothing", write(fd, "", 0));
    line("sink: %s", peer("sunk"));
}

/* Zero bytes asked for: the datagram is taken all the same. */
CASE(udp_read_nothing, ACCELERATED)
{
    int fd = udp(host4, 5006);
    peer("send %s 6000 5006 7 2 0", host4);
    wait_for(fd, POLLIN, 2000);
    value("recv of 0 bytes", recv(fd, NULL, 0, 0));
    wait_for(fd, POLLIN, 2000);
    receive(fd, MSG_DONTWAIT);
    receive(fd, MSG_DONTWAIT);
}

CASE(udp_peek_trunc, ACCELERATED)
{
    int fd = udp(host4, 5007);
    char bytes[16] = "";
    peer("send %s 6000 5007 100 2 0", host4);
    wait_for(fd, POLLIN, 2000);
    content("PEEK", bytes, recv(fd, bytes, sizeof bytes, MSG_PEEK));
    value("PEEK|TRUNC", recv(fd, bytes, sizeof bytes, MSG_PEEK | MSG_TRUNC));
    value("PEEK|TRUNC of 0 bytes", recv(fd, NULL, 0, MSG_PEEK | MSG_TRUNC));
    int unread = -1;
    value("FIONREAD", ioctl(fd, FIONREAD, &unread));
    line("unread %d", unread);
    struct iovec room = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1};
    value("recvmsg", recvmsg(fd, &message, 0));
    yes("MSG_TRUNC", message.msg_flags & MSG_TRUNC);
    wait_for(fd, POLLIN, 2000);
    message.msg_flags = 0;
    value("recvmsg TRUNC", recvmsg(fd, &message, MSG_TRUNC));
    yes("MSG_TRUNC", message.msg_flags & MSG_TRUNC);
    receive(fd, MSG_DONTWAIT);
    value("FIONREAD", ioctl(fd, FIONREAD, &unread));
    line("unread %d", unread);
}

CASE(udp_shutdown, ACCELERATED)
{
    /* ENOTCONN, but the kernel marks the socket all the same: use another one after it. */
    int unconnected = udp(host4, 5019);
    value("shutdown unconnected", shutdown(unconnected, SHUT_RD));
    int fd = udp(host4, 5008);
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 3; i++) {
        value("send", send(fd, "before", 6, 0));
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    value("shutdown SHUT_RD", shutdown(fd, SHUT_RD));
    wait_for(fd, POLLIN | POLLRDHUP, 0);
    receive(fd, 0);
    value("shutdown SHUT_WR", shutdown(fd, SHUT_WR));
    value("send", send(fd, "after", 5, MSG_NOSIGNAL));
    wait_for(fd, POLLIN | POLLOUT, 0);
}

/* One AF_INET6 socket serves both families: the default of Java, Node and iperf3. */
CASE(udp_v4mapped, ACCELERATED)
{
    int fd = socket(AF_INET6, SOCK_DGRAM, 0), off = 0;
    done("socket", fd);
    value("IPV6_V6ONLY", setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off));
    struct to any = at("::", 5009);
    value("bind ::", bind(fd, (struct sockaddr *)&any.at, any.length));
    peer("send %s 6000 5009 4 2 0", host4);
    peer("send %s 6000 5009 6 2 0", host6);
    for (int i = 0; i < 4; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    char mapped[80];
    snprintf(mapped, sizeof mapped, "::ffff:%s", peer4);
    send_to(fd, "four in six", mapped, ECHO);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    connect_to(fd, mapped, ECHO2);
    value("send", send(fd, "mapped", 6, 0));
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    value("getpeername", getpeername(fd, (struct sockaddr *)&address, &length));
    print_address("peer", &address);
    length = sizeof address;
    value("getsockname", getsockname(fd, (struct sockaddr *)&address, &length));
    print_address("own", &address);
}

CASE(udp_v6only, ACCELERATED)
{
    int fd = socket(AF_INET6, SOCK_DGRAM, 0), on = 1;
    value("IPV6_V6ONLY", setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    struct to any = at("::", 5010);
    value("bind ::", bind(fd, (struct sockaddr *)&any.at, any.length));
    int four = udp("", 5010);
    peer("send %s 6000 5010 4 1 0", host4);
    peer("send %s 6000 5010 6 1 0", host6);
    wait_for(four, POLLIN, 2000);
    receive_from(four, 0);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    receive(four, MSG_DONTWAIT);
    receive(fd, MSG_DONTWAIT);
    char mapped[80];
    snprintf(mapped, sizeof mapped, "::ffff:%s", peer4);
    send_to(fd, "x", mapped, ECHO);
    struct to own = at(host4, 5011);
    value("IPV6_V6ONLY on AF_INET", setsockopt(four, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    value("bind twice", bind(four, (struct sockaddr *)&own.at, own.length));
}

/* A socket on any address hears the wire, loopback and the host's own address. */
CASE(udp_wildcard_both, MIXED)
{
    int fd = udp("", 5012);
    peer("send %s 6000 5012 4 4 0", host4);
    for (int i = 0; i < 4; i++) {
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
    }
    int local = udp("127.0.0.1", 5013);
    send_to(local, "loopback", "127.0.0.1", 5012);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    send_to(fd, "back", "127.0.0.1", 5013);
    wait_for(local, POLLIN, 2000);
    receive_from(local, 0);
    int own = udp(host4, 5014);
    send_to(own, "own address", host4, 5012);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
    send_to(fd, "back", host4, 5014);
    wait_for(own, POLLIN, 2000);
    receive_from(own, 0);
    peer("send %s 6000 5012 4 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
}

/* The host's own address, both ends accelerated: the stack or the kernel must carry it. */
CASE(udp_own_address, MIXED)
{
    int left = udp(host4, 5015), right = udp(host4, 5016);
    send_to(left, "to the right", host4, 5016);
    wait_for(right, POLLIN, 2000);
    receive_from(right, 0);
    connect_to(right, host4, 5015);
    value("send", send(right, "to the left", 11, 0));
    wait_for(left, POLLIN, 2000);
    receive_from(left, 0);
    send_to(left, "to itself", host4, 5015);
    wait_for(left, POLLIN, 2000);
    receive_from(left, 0);
    for (int i = 0; i < 3; i++) {
        send_to(left, "out", peer4, ECHO);
        wait_for(left, POLLIN, 2000);
        receive_from(left, 0);
    }
}

CASE(udp_read_write, ACCELERATED)
{
    int fd = udp(host4, 5017);
    char bytes[64];
    value("write unconnected", write(fd, "x", 1));
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 3; i++) {
        value("write", write(fd, "by write", 8));
        wait_for(fd, POLLIN, 2000);
        content("read", bytes, read(fd, bytes, sizeof bytes));
    }
    value("pread", pread(fd, bytes, sizeof bytes, 0));
    value("lseek", lseek(fd, 0, SEEK_SET));
    value("write", write(fd, "short", 5));
    wait_for(fd, POLLIN, 2000);
    content("read of 2", bytes, read(fd, bytes, 2));
    value("nonblocking", fcntl(fd, F_SETFL, O_NONBLOCK));
    value("read", read(fd, bytes, sizeof bytes));
}

/* Port, bind and connect in every order; a socket closed with datagrams unread. */
CASE(udp_rebind, ACCELERATED)
{
    for (int round = 0; round < 3; round++) {
        int fd = udp(host4, 5018);
        peer("send %s 6000 5018 10 3 0", host4);
        wait_for(fd, POLLIN, 2000);
        receive_from(fd, 0);
        value("close", close(fd));
    }
    int fd = udp(host4, 5018);
    receive(fd, MSG_DONTWAIT);
    peer("send %s 6000 5018 10 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    receive_from(fd, 0);
}

/* Ten sockets, each with its own traffic. */
CASE(udp_many_sockets, ACCELERATED)
{
    int sockets[10];
    for (int i = 0; i < 10; i++)
        sockets[i] = udp(host4, 5100 + i);
    for (int i = 0; i < 10; i++)
        peer("send %s 6000 %d %d 2 0", host4, 5100 + i, 3 + i);
    for (int i = 9; i >= 0; i--) {
        for (int k = 0; k < 2; k++) {
            wait_for(sockets[i], POLLIN, 2000);
            receive_from(sockets[i], 0);
        }
        receive(sockets[i], MSG_DONTWAIT);
    }
}
