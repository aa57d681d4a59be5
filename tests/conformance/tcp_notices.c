/* What the error queue of a connection tells of sends, and when received data has come. */
#include "case.h"

#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/select.h>

#ifndef SOF_TIMESTAMPING_OPT_ID_TCP
#define SOF_TIMESTAMPING_OPT_ID_TCP (1 << 16)
#endif

static struct timespec start;

static int set(int fd, int level, int name, int number)
{
    return setsockopt(fd, level, name, &number, sizeof number);
}

static void get(int fd, int name)
{
    int number[3] = {-1, -1, -1};
    socklen_t length = sizeof number;
    value("getsockopt", getsockopt(fd, SOL_SOCKET, name, number, &length));
    line("  %d, %u bytes", number[0], length);
}

static bool is_later(struct timespec one, struct timespec two)
{
    return one.tv_sec > two.tv_sec || (one.tv_sec == two.tv_sec && one.tv_nsec >= two.tv_nsec);
}

/* Whether a time is between the start of the case and now. */
static const char *when(struct timespec time)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (!time.tv_sec && !time.tv_nsec)
        return "none";
    return is_later(time, start) && is_later(now, time) ? "now" : "another time";
}

static void show(struct msghdr *header)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        line("  level %d type %d length %zu", c->cmsg_level, c->cmsg_type, c->cmsg_len);
        const void *data = CMSG_DATA(c);
        if (header->msg_flags & MSG_CTRUNC && !CMSG_NXTHDR(header, c))
            continue;
        if (c->cmsg_level == IPPROTO_TCP) {
            line("  inq %d", *(const int *)data);
        } else if (c->cmsg_level != SOL_SOCKET) {
            struct sock_extended_err error;
            memcpy(&error, data, sizeof error);
            line("  errno %u origin %u type %u code %u info %u data %u", error.ee_errno,
                 error.ee_origin, error.ee_type, error.ee_code, error.ee_info, error.ee_data);
        } else if (c->cmsg_type == SCM_TIMESTAMPING) {
            struct scm_timestamping times;
            memcpy(&times, data, sizeof times);
            line("  %s, %s, %s", when(times.ts[0]), when(times.ts[1]), when(times.ts[2]));
        } else if (c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec time;
            memcpy(&time, data, sizeof time);
            line("  %s", when(time));
        } else if (c->cmsg_type == SCM_TIMESTAMP) {
            struct timeval time;
            memcpy(&time, data, sizeof time);
            /* Rounded down. */
            line("  %s", when((struct timespec){time.tv_sec, time.tv_usec * 1000 + 999}));
        }
    }
}

/* recvmsg() with all that it gives. */
static long told(int fd, int flags, size_t room)
{
    char ancillary[256], bytes[64];
    struct iovec part = {bytes, flags & MSG_ERRQUEUE ? 0 : sizeof bytes};
    struct sockaddr_storage from;
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = ancillary,
                            .msg_controllen = room,
                            .msg_name = &from,
                            .msg_namelen = sizeof from};
    long got = value("recvmsg", recvmsg(fd, &header, flags));
    if (got < 0)
        return got;
    line("  flags %x control %zu name %u", header.msg_flags, header.msg_controllen,
         header.msg_namelen);
    show(&header);
    return got;
}

static void next(int fd)
{
    wait_for(fd, 0, 3000);
    told(fd, MSG_ERRQUEUE, 256);
}

/* The echo of so many bytes: with it their send is acknowledged. */
static void echo(int fd, size_t length)
{
    char bytes[64];
    content("recv", bytes, recv(fd, bytes, length, MSG_WAITALL));
}

static void exchange(int fd, const char *text, int flags)
{
    value("send", send(fd, text, strlen(text), flags));
    echo(fd, strlen(text));
}

CASE(tcp_zerocopy, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    value("SO_ZEROCOPY 2", set(fd, SOL_SOCKET, SO_ZEROCOPY, 2));
    value("SO_ZEROCOPY", set(fd, SOL_SOCKET, SO_ZEROCOPY, 1));
    value("before", send(fd, "none", 4, MSG_ZEROCOPY | MSG_NOSIGNAL));
    told(fd, MSG_ERRQUEUE, 256);
    connect_to(fd, peer4, T_ECHO);
    get(fd, SO_ZEROCOPY);
    told(fd, MSG_ERRQUEUE, 256);
    value("nothing", send(fd, "", 0, MSG_ZEROCOPY));
    exchange(fd, "still", MSG_ZEROCOPY);
    get(fd, SO_ERROR);
    next(fd);
    told(fd, MSG_ERRQUEUE, 256);
    wait_for(fd, POLLIN, 0);
    /* Those that nobody has read are one. */
    for (int i = 0; i < 3; i++)
        exchange(fd, "merged", MSG_ZEROCOPY);
    exchange(fd, "plain", 0);
    exchange(fd, "merged", MSG_ZEROCOPY);
    next(fd);
    exchange(fd, "cut", MSG_ZEROCOPY);
    wait_for(fd, 0, 3000);
    told(fd, MSG_ERRQUEUE, 24);
    exchange(fd, "nowhere", MSG_ZEROCOPY);
    wait_for(fd, 0, 3000);
    told(fd, MSG_ERRQUEUE, 0);
    exchange(fd, "recv", MSG_ZEROCOPY);
    wait_for(fd, 0, 3000);
    char byte;
    value("recv", recv(fd, &byte, 1, MSG_ERRQUEUE));
    exchange(fd, "sent before off", MSG_ZEROCOPY);
    value("SO_ZEROCOPY 0", set(fd, SOL_SOCKET, SO_ZEROCOPY, 0));
    exchange(fd, "after off", MSG_ZEROCOPY);
    next(fd);
    value("shutdown", shutdown(fd, SHUT_WR));
    value("SO_ZEROCOPY", set(fd, SOL_SOCKET, SO_ZEROCOPY, 1));
    value("after the end", send(fd, "x", 1, MSG_ZEROCOPY | MSG_NOSIGNAL));
    told(fd, MSG_ERRQUEUE, 256);
    close(fd);
    fd = dial(peer4, T_ECHO);
    exchange(fd, "without", MSG_ZEROCOPY);
    told(fd, MSG_ERRQUEUE, 256);
    close(fd);
}

CASE(tcp_zerocopy_waits, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), set_of = epoll_create1(0);
    struct epoll_event event = {EPOLLOUT | EPOLLET, {0}};
    value("SO_ZEROCOPY", set(fd, SOL_SOCKET, SO_ZEROCOPY, 1));
    value("ADD", epoll_ctl(set_of, EPOLL_CTL_ADD, fd, &event));
    readiness("epoll", epoll_wait(set_of, &event, 1, 3000), event.events);
    readiness("epoll", epoll_wait(set_of, &event, 1, 0), 0);
    exchange(fd, "one", MSG_ZEROCOPY);
    readiness("epoll", epoll_wait(set_of, &event, 1, 3000), event.events);
    readiness("epoll", epoll_wait(set_of, &event, 1, 0), 0);
    exchange(fd, "two", MSG_ZEROCOPY);
    readiness("epoll", epoll_wait(set_of, &event, 1, 3000), event.events);
    readiness("epoll", epoll_wait(set_of, &event, 1, 0), 0);
    event.events = EPOLLIN;
    value("MOD", epoll_ctl(set_of, EPOLL_CTL_MOD, fd, &event));
    for (int i = 0; i < 2; i++)
        readiness("epoll", epoll_wait(set_of, &event, 1, 0), event.events);
    fd_set in, out, other;
    FD_ZERO(&in);
    FD_SET(fd, &in);
    other = out = in;
    struct timeval moment = {0, 0};
    value("select", select(fd + 1, &in, &out, &other, &moment));
    line("  %d %d %d", !!FD_ISSET(fd, &in), !!FD_ISSET(fd, &out), !!FD_ISSET(fd, &other));
    /* Neither a receive nor a send has to do with it. */
    value("recv", recv(fd, &event, 1, MSG_DONTWAIT));
    struct timeval short_time = {0, 200000};
    value("RCVTIMEO", setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time));
    value("recv", recv(fd, &event, 1, 0));
    told(fd, MSG_ERRQUEUE, 256);
    readiness("epoll", epoll_wait(set_of, &event, 1, 0), 0);
    close(fd);

    static char much[3000000];
    fd = dial(peer4, T_SLOW);
    value("SO_ZEROCOPY", set(fd, SOL_SOCKET, SO_ZEROCOPY, 1));
    value("SO_SNDBUF", set(fd, SOL_SOCKET, SO_SNDBUF, 60000));
    value("send", send(fd, "first", 5, MSG_ZEROCOPY));
    wait_for(fd, 0, 3000);
    value("send", send(fd, much, sizeof much, 0));
    value("send", send(fd, much, 400000, MSG_ZEROCOPY));
    value("shutdown", shutdown(fd, SHUT_WR));
    value("recv", recv(fd, much, 1, 0));
    told(fd, MSG_ERRQUEUE, 256);
}

CASE(tcp_zerocopy_shared, ACCELERATED)
{
    int local = listener(host4, 6380, 5);
    value("SO_ZEROCOPY", set(local, SOL_SOCKET, SO_ZEROCOPY, 1));
    peer("dial %s 6380 e", host4);
    int fd = accept(local, NULL, NULL);
    done("accept", fd);
    get(fd, SO_ZEROCOPY);
    exchange(fd, "parent", MSG_ZEROCOPY);
    wait_for(fd, 0, 3000);
    pid_t child = fork();
    if (!child) {
        next(fd);
        exchange(fd, "child", MSG_ZEROCOPY);
        wait_for(fd, 0, 3000);
        _exit(7);
    }
    reap(child);
    next(fd);
    told(fd, MSG_ERRQUEUE, 256);
    exchange(fd, "parent", MSG_ZEROCOPY);
    next(fd);
    close(fd);
    fd = dial(peer6, T_ECHO);
    value("SO_ZEROCOPY", set(fd, SOL_SOCKET, SO_ZEROCOPY, 1));
    exchange(fd, "six", MSG_ZEROCOPY);
    next(fd);
}

CASE(tcp_timestamping, ACCELERATED)
{
    static const int all = SOF_TIMESTAMPING_TX_SCHED | SOF_TIMESTAMPING_TX_SOFTWARE |
                           SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_SOFTWARE |
                           SOF_TIMESTAMPING_OPT_TSONLY;
    clock_gettime(CLOCK_REALTIME, &start);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    value("OPT_ID", set(fd, SOL_SOCKET, SO_TIMESTAMPING, all | SOF_TIMESTAMPING_OPT_ID));
    value("without", set(fd, SOL_SOCKET, SO_TIMESTAMPING, all));
    get(fd, SO_TIMESTAMPING);
    connect_to(fd, peer4, T_ECHO);
    get(fd, SO_TIMESTAMPING);
    exchange(fd, "without numbers", 0);
    for (int i = 0; i < 3; i++)
        next(fd);
    told(fd, MSG_ERRQUEUE, 256);
    value("OPT_ID_TCP alone",
          set(fd, SOL_SOCKET, SO_TIMESTAMPING, all | SOF_TIMESTAMPING_OPT_ID_TCP));
    value("unknown", set(fd, SOL_SOCKET, SO_TIMESTAMPING, 1 << 30));
    value("short", setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &all, 3));
    get(fd, SO_TIMESTAMPING);
    value("OPT_ID", set(fd, SOL_SOCKET, SO_TIMESTAMPING, all | SOF_TIMESTAMPING_OPT_ID));
    get(fd, SO_TIMESTAMPING);
    exchange(fd, "ten bytes.", 0);
    for (int i = 0; i < 3; i++)
        next(fd);
    /* The numbers go on. */
    value("set again", set(fd, SOL_SOCKET, SO_TIMESTAMPING,
                           SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_OPT_ID));
    exchange(fd, "ten more..", 0);
    next(fd);
    value("off", set(fd, SOL_SOCKET, SO_TIMESTAMPING, 0));
    exchange(fd, "off", 0);
    value("with a packet", set(fd, SOL_SOCKET, SO_TIMESTAMPING,
                               SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE |
                                   SOF_TIMESTAMPING_OPT_ID | SOF_TIMESTAMPING_OPT_ID_TCP));
    exchange(fd, "five.", 0);
    next(fd);
    told(fd, MSG_ERRQUEUE, 256);
    get(fd, SO_ERROR);
    /* Between those of zero copy. */
    value("SO_ZEROCOPY", set(fd, SOL_SOCKET, SO_ZEROCOPY, 1));
    value("TX_ACK", set(fd, SOL_SOCKET, SO_TIMESTAMPING,
                        SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_OPT_TSONLY));
    exchange(fd, "one", MSG_ZEROCOPY);
    exchange(fd, "two", 0);
    value("off", set(fd, SOL_SOCKET, SO_TIMESTAMPING, 0));
    value("SO_TIMESTAMPNS", set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1));
    close(fd);
    int local = listener(host4, 6381, 5);
    value("on a listener", set(local, SOL_SOCKET, SO_TIMESTAMPING, all | SOF_TIMESTAMPING_OPT_ID));
    value("without", set(local, SOL_SOCKET, SO_TIMESTAMPING, all));
    peer("dial %s 6381 e", host4);
    fd = accept(local, NULL, NULL);
    get(fd, SO_TIMESTAMPING);
    exchange(fd, "accepted", 0);
    for (int i = 0; i < 3; i++)
        next(fd);
}

/* What a connection has asked for it has as the kernel's too; sends are counted from there. */
CASE(tcp_notices_handed_over, MIXED)
{
    int local = listener(host4, 6383, 5);
    value("SO_ZEROCOPY", set(local, SOL_SOCKET, SO_ZEROCOPY, 1));
    value("SO_TIMESTAMPNS", set(local, SOL_SOCKET, SO_TIMESTAMPNS, 1));
    for (int i = 0; i < 2; i++) {
        peer("dial %s 6383 e", host4);
        int fd = accept(local, NULL, NULL);
        if (i)
            value("SO_TIMESTAMP", set(fd, SOL_SOCKET, SO_TIMESTAMP, 1));
        value("OPT_ID", set(fd, SOL_SOCKET, SO_TIMESTAMPING,
                            SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_OPT_ID));
        value("SO_PEEK_OFF", set(fd, SOL_SOCKET, SO_PEEK_OFF, 0));
        get(fd, SO_ZEROCOPY);
        get(fd, SO_TIMESTAMP);
        get(fd, SO_TIMESTAMPNS);
        get(fd, SO_TIMESTAMPING);
        exchange(fd, "plain", 0);
        close(fd);
    }
}

/* One send that brings the flags itself. */
static void send_stamped(int fd, unsigned flags, size_t length)
{
    char ancillary[CMSG_SPACE(sizeof flags)] = {0}, bytes[] = "stamped";
    struct iovec part = {bytes, 7};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = ancillary,
                            .msg_controllen = sizeof ancillary};
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SO_TIMESTAMPING;
    c->cmsg_len = CMSG_LEN(length);
    memcpy(CMSG_DATA(c), &flags, sizeof flags);
    value("sendmsg", sendmsg(fd, &header, 0));
}

CASE(tcp_timestamping_calls, ACCELERATED)
{
    clock_gettime(CLOCK_REALTIME, &start);
    int fd = dial(peer4, T_ECHO);
    send_stamped(fd, SOF_TIMESTAMPING_TX_ACK, 4);
    echo(fd, 7);
    value("SO_TIMESTAMPING", set(fd, SOL_SOCKET, SO_TIMESTAMPING,
                                 SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID |
                                     SOF_TIMESTAMPING_OPT_TSONLY));
    told(fd, MSG_ERRQUEUE, 256);
    exchange(fd, "not stamped", 0);
    told(fd, MSG_ERRQUEUE, 256);
    send_stamped(fd, SOF_TIMESTAMPING_TX_ACK, 4);
    echo(fd, 7);
    next(fd);
    send_stamped(fd, SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_TX_SCHED, 4);
    echo(fd, 7);
    next(fd);
    next(fd);
    told(fd, MSG_ERRQUEUE, 256);
    send_stamped(fd, SOF_TIMESTAMPING_SOFTWARE, 4);
    send_stamped(fd, SOF_TIMESTAMPING_TX_ACK, 2);
    send_stamped(fd, 0, 4);
    echo(fd, 7);
    told(fd, MSG_ERRQUEUE, 256);
}

/* The kernel stamps what comes from some moment on after the first socket asks for it. */
static void await_stamps(int fd)
{
    for (int i = 0; i < 300; i++) {
        char ancillary[256], byte = 's';
        struct iovec part = {&byte, 1};
        struct msghdr header = {.msg_iov = &part,
                                .msg_iovlen = 1,
                                .msg_control = ancillary,
                                .msg_controllen = sizeof ancillary};
        if (send(fd, &byte, 1, 0) != 1 || recvmsg(fd, &header, 0) != 1)
            break;
        if (header.msg_controllen)
            return;
        pause_ms(10);
    }
    line("never stamped");
}

CASE(tcp_arrival_times, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    value("SO_TIMESTAMP", set(fd, SOL_SOCKET, SO_TIMESTAMP, 1));
    get(fd, SO_TIMESTAMP);
    get(fd, SO_TIMESTAMPNS);
    await_stamps(fd);
    clock_gettime(CLOCK_REALTIME, &start);
    value("send", send(fd, "abc", 3, 0));
    wait_for(fd, POLLIN, 3000);
    told(fd, MSG_PEEK, 256);
    told(fd, 0, 256);
    value("SO_TIMESTAMPNS", set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1));
    get(fd, SO_TIMESTAMP);
    get(fd, SO_TIMESTAMPNS);
    value("send", send(fd, "def", 3, 0));
    told(fd, 0, 256);
    value("TCP_INQ", set(fd, IPPROTO_TCP, TCP_INQ, 1));
    value("RX", set(fd, SOL_SOCKET, SO_TIMESTAMPING,
                    SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE));
    value("send", send(fd, "ghi", 3, 0));
    told(fd, 0, 256);
    value("send", send(fd, "jkl", 3, 0));
    wait_for(fd, POLLIN, 3000);
    told(fd, 0, 70);
    value("off", set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 0));
    value("RX alone", set(fd, SOL_SOCKET, SO_TIMESTAMPING, SOF_TIMESTAMPING_RX_SOFTWARE));
    value("send", send(fd, "mno", 3, 0));
    told(fd, 0, 256);
    close(fd);
    int local = listener(host4, 6382, 5);
    value("SO_TIMESTAMP", set(local, SOL_SOCKET, SO_TIMESTAMP, 1));
    peer("dial %s 6382 e", host4);
    fd = accept(local, NULL, NULL);
    get(fd, SO_TIMESTAMP);
    value("send", send(fd, "pqr", 3, 0));
    told(fd, 0, 256);
}
