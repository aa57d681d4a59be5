/*
 * The kernel side of the conformance cases.
 *
 *   peer ADDRESS4 ADDRESS6
 *
 * UDP 7007 and 7017 echo; UDP 7009 swallows and counts; nobody is at UDP 7008, so the kernel
 * answers with ICMP. TCP 7000 takes commands, one a line, one line of answer each:
 *
 *   send ADDRESS FROM TO SIZE COUNT GAP_US [TOS TTL]   datagrams from port FROM (0 = any) to TO;
 *                                                      the i-th begins with the letter 'a' + i
 *   late ADDRESS FROM TO SIZE COUNT DELAY_MS           the same, after the answer
 *   segments ADDRESS FROM TO SIZE SEGMENT              one UDP_SEGMENT send
 *   reset                                              zero the sink's counts
 *   sunk                                               "datagrams bytes last-size tos ttl"
 *   dial ADDRESS PORT SCRIPT...                        a TCP connection, see stream.h
 *   go                                                 what a script that holds waits for
 *   dialled                                            how it ended: "bytes EOF" or an error
 */
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { CONTROL = 7000, MAX_CLIENTS = 16 };

static struct {
    unsigned long datagrams, bytes;
    long last_size;
    int tos, ttl;
} sunk;

static _Noreturn void fail(const char *what)
{
    perror(what);
    exit(1);
}

static socklen_t at(const char *host, int port, struct sockaddr_storage *to)
{
    memset(to, 0, sizeof *to);
    struct sockaddr_in *v4 = (void *)to;
    struct sockaddr_in6 *v6 = (void *)to;
    if (strchr(host, ':')) {
        inet_pton(AF_INET6, host, &v6->sin6_addr);
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        return sizeof *v6;
    }
    inet_pton(AF_INET, host, &v4->sin_addr);
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    return sizeof *v4;
}

static int bound(const char *host, int port)
{
    struct sockaddr_storage local;
    socklen_t length = at(host, port, &local);
    int fd = socket(local.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1, size = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof on);
    setsockopt(fd, IPPROTO_IP, IP_RECVTTL, &on, sizeof on);
    if (local.ss_family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof on);
        setsockopt(fd, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, &on, sizeof on);
    }
    if (bind(fd, (struct sockaddr *)&local, length) < 0)
        fail("bind");
    return fd;
}

static void echo(int fd)
{
    static char bytes[70000];
    struct sockaddr_storage from;
    socklen_t length = sizeof from;
    ssize_t got =
        recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
    if (got >= 0)
        sendto(fd, bytes, (size_t)got, 0, (struct sockaddr *)&from, length);
}

/* Takes one datagram of a sink; false when there is none. */
static bool swallow(int fd)
{
    static char bytes[70000];
    char ancillary[256];
    struct iovec all = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &all,
                             .msg_iovlen = 1,
                             .msg_control = ancillary,
                             .msg_controllen = sizeof ancillary};
    ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
    if (got < 0)
        return false;
    sunk.datagrams++;
    sunk.bytes += (unsigned long)got;
    sunk.last_size = got;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        int number = 0;
        memcpy(&number, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0) < 4 ? 1 : 4);
        if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) ||
            (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS))
            sunk.tos = number;
        if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) ||
            (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT))
            sunk.ttl = number;
    }
    return true;
}

static void pause_us(long microseconds)
{
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&left, NULL);
}

/* Our address of the same family as `host`. */
static const char *own(const char *host, char **addresses)
{
    return strchr(host, ':') ? addresses[1] : addresses[0];
}

static void send_some(char **own_addresses, const char *host, int from, int to, int size, int count,
                      long gap_us, int tos, int ttl)
{
    static char bytes[70000];
    struct sockaddr_storage remote;
    socklen_t length = at(host, to, &remote);
    int fd = bound(own(host, own_addresses), from);
    if (tos) {
        setsockopt(fd, IPPROTO_IP, IP_TOS, &tos, sizeof tos);
        setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl);
        if (remote.ss_family == AF_INET6) {
            setsockopt(fd, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof tos);
            setsockopt(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, &ttl, sizeof ttl);
        }
    }
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < size; k++)
            bytes[k] = (char)('a' + (i + k) % 26);
        sendto(fd, bytes, (size_t)size, 0, (struct sockaddr *)&remote, length);
        if (gap_us)
            pause_us(gap_us);
    }
    close(fd);
}

static void send_segments(char **own_addresses, const char *host, int from, int to, int size,
                          int segment)
{
    static char bytes[70000];
    struct sockaddr_storage remote;
    socklen_t length = at(host, to, &remote);
    int fd = bound(own(host, own_addresses), from);
    setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment);
    for (int k = 0; k < size; k++)
        bytes[k] = (char)('a' + k / segment % 26);
    sendto(fd, bytes, (size_t)size, 0, (struct sockaddr *)&remote, length);
    close(fd);
}

static void answer(const char *command, char *reply, size_t room, char **own_addresses)
{
    char host[64];
    int from, to, size, count, tos = 0, ttl = 64;
    long wait;
    snprintf(reply, room, "ok\n");
    if (sscanf(command, "send %63s %d %d %d %d %ld %d %d", host, &from, &to, &size, &count, &wait,
               &tos, &ttl) >= 6) {
        send_some(own_addresses, host, from, to, size, count, wait, tos, ttl);
    } else if (sscanf(command, "late %63s %d %d %d %d %ld", host, &from, &to, &size, &count,
                      &wait) == 6) {
        if (fork() == 0) {
            pause_us(wait * 1000);
            send_some(own_addresses, host, from, to, size, count, 0, 0, 0);
            _exit(0);
        }
    } else if (sscanf(command, "segments %63s %d %d %d %d", host, &from, &to, &size, &count) == 5) {
        send_segments(own_addresses, host, from, to, size, count);
    } else if (sscanf(command, "dial %63s %d %n", host, &to, &size) == 2) {
        stream_dial(host, to, command + size);
    } else if (strncmp(command, "go", 2) == 0) {
        stream_go();
    } else if (strncmp(command, "dialled", 7) == 0) {
        stream_result(reply, room);
    } else if (strncmp(command, "reset", 5) == 0) {
        memset(&sunk, 0, sizeof sunk);
    } else if (strncmp(command, "sunk", 4) == 0) {
        snprintf(reply, room, "%lu %lu %ld tos %d ttl %d\n", sunk.datagrams, sunk.bytes,
                 sunk.last_size, sunk.tos, sunk.ttl);
    } else {
        snprintf(reply, room, "what?\n");
    }
}

/* One command from a control connection; false when it is closed. */
static bool serve(int fd, char **own_addresses, const int *sinks)
{
    char command[256], reply[256];
    size_t have = 0;
    while (have < sizeof command - 1) {
        if (read(fd, command + have, 1) != 1)
            return false;
        if (command[have++] == '\n')
            break;
    }
    command[have] = 0;
    /* What came before the question belongs into the answer. */
    for (int i = 0; i < 2; i++)
        while (swallow(sinks[i]))
            ;
    answer(command, reply, sizeof reply, own_addresses);
    return write(fd, reply, strlen(reply)) > 0;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    stream_servers(argv[1], argv[2]);
    enum { ECHOES = 4, SINKS = 2, LISTENER = ECHOES + SINKS, FIRST = LISTENER + 1 };
    struct pollfd all[FIRST + MAX_CLIENTS];
    nfds_t count = FIRST;
    int sockets[LISTENER] = {bound(argv[1], 7007), bound(argv[2], 7007), bound(argv[1], 7017),
                             bound(argv[2], 7017), bound(argv[1], 7009), bound(argv[2], 7009)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_storage local;
    socklen_t length = at(argv[1], CONTROL, &local);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&local, length) < 0 || listen(listener, 8) < 0)
        fail("listen");
    for (int i = 0; i < LISTENER; i++)
        all[i] = (struct pollfd){sockets[i], POLLIN, 0};
    all[LISTENER] = (struct pollfd){listener, POLLIN, 0};
    for (;;) {
        if (poll(all, count, -1) < 0 && errno != EINTR)
            fail("poll");
        for (int i = 0; i < ECHOES; i++)
            if (all[i].revents)
                echo(all[i].fd);
        for (int i = ECHOES; i < LISTENER; i++)
            while (all[i].revents && swallow(all[i].fd))
                ;
        for (nfds_t i = FIRST; i < count; i++) {
            if (all[i].revents && !serve(all[i].fd, argv + 1, sockets + ECHOES)) {
                close(all[i].fd);
                all[i--] = all[--count];
            }
        }
        if (all[LISTENER].revents && count < FIRST + MAX_CLIENTS)
            all[count++] = (struct pollfd){accept4(listener, NULL, NULL, SOCK_CLOEXEC), POLLIN, 0};
    }
}
