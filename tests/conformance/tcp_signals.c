/* TCP: signals that interrupt a call, or do not. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sendfile.h>

/* What ends a wait in the kernel, with SA_RESTART too, ends it here. */
CASE(tcp_signals_waits, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, found;
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    for (int i = 0; i < 2; i++) {
        struct pollfd one = {fd, POLLIN, 0};
        fd_set in;
        struct timeval limit = {20, 0};
        alarm_every(30, i ? SA_RESTART : 0);
        value("poll", poll(&one, 1, -1));
        value("poll, limit", poll(&one, 1, 20000));
        FD_ZERO(&in);
        FD_SET(fd, &in);
        value("select", select(fd + 1, &in, NULL, NULL, &limit));
        yes("time left", limit.tv_sec > 0 && limit.tv_sec < 20);
        value("epoll_wait", epoll_wait(set, &found, 1, -1));
        value("epoll_wait, limit", epoll_wait(set, &found, 1, 20000));
        alarm_off();
    }
    /* The end is not left to whoever finishes the connections of a program that has gone. */
    value("shutdown", shutdown(fd, SHUT_WR));
    receive(fd, 0);
}

/* SA_RESTART goes on with a receive, unless the socket has a time limit. */
CASE(tcp_signals_receive, ACCELERATED)
{
    struct timeval limit = {20, 0};
    int fd = accepted(6230, "hold s3 hold s5 w");
    alarm_every(30, 0);
    receive(fd, 0);
    alarm_off();
    alarm_once(30, SA_RESTART, "go");
    receive(fd, 0);
    alarm_off();
    alarm_once(30, SA_RESTART, "go");
    char bytes[8];
    content("WAITALL", bytes, recv(fd, bytes, 5, MSG_WAITALL));
    alarm_off();
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    alarm_every(30, SA_RESTART);
    receive(fd, 0);
    alarm_off();
    int local = listener(host4, 6231, 5);
    alarm_every(30, 0);
    value("accept", accept(local, NULL, NULL));
    alarm_off();
    setsockopt(local, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    alarm_every(30, SA_RESTART);
    value("accept, limit", accept(local, NULL, NULL));
    alarm_off();
}

/* Sends until there is no room for half a second: what is on its way makes some for a while. */
static void fill(int fd, const char *bytes, size_t size)
{
    for (int full = 0; full < 25; pause_ms(20))
        full = send(fd, bytes, size, MSG_DONTWAIT) < 0 ? full + 1 : 0;
}

/* A send tells what it has sent; the next one is interrupted; a restarted one goes on. */
CASE(tcp_signals_send, ACCELERATED)
{
    enum { SIZE = 16 << 20 };
    char *bytes = calloc(1, SIZE);
    int fd = accepted(6233, "hold w");
    alarm_every(60, 0);
    long sent = send(fd, bytes, SIZE, 0);
    alarm_off();
    yes("a part", sent > 0 && sent < SIZE);
    alarm_every(60, 0);
    while ((sent = send(fd, bytes, 1, 0)) == 1)
        ;
    value("full", sent);
    alarm_off();
    fill(fd, bytes, SIZE);
    alarm_once(60, SA_RESTART, "go");
    value("restarted", send(fd, bytes, SIZE / 8, 0));
    alarm_off();
    /* What is unsent at the end of the last process is sent by the kernel. */
    close(fd);
    peer("dialled");
    free(bytes);
}

static volatile bool stop;

/* Exchanges messages without an end on a connection of its own. */
static void *traffic(void *connection)
{
    int fd = *(int *)connection;
    char bytes[64];
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (!stop)
        if (send(fd, bytes, 64, 0) != 64 || recv(fd, bytes, 64, MSG_WAITALL) != 64)
            break;
    return NULL;
}

/*
 * No signal is lost while frames for others keep waking the waiting thread. Now and then an alarm
 * comes before the call waits; where one is lost between two waits, more than half of them are.
 */
CASE(tcp_signals_in_traffic, ACCELERATED)
{
    int busy = dial(peer4, T_ECHO), fd = dial(peer4, T_ECHO), interrupted = 0;
    struct timeval limit = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    pthread_t thread;
    pthread_create(&thread, NULL, traffic, &busy);
    for (int i = 0; i < 60; i++) {
        char byte;
        struct pollfd one = {fd, POLLIN, 0};
        alarm_once(7, 0, NULL);
        long got = i % 2 ? recv(fd, &byte, 1, 0) : poll(&one, 1, 1000);
        interrupted += got < 0 && errno == EINTR;
    }
    stop = true;
    pthread_join(thread, NULL);
    yes("interrupted", interrupted >= 50);
}

/* The end of a file leaves at once, whatever count was asked for. */
CASE(tcp_sendfile_end, ACCELERATED)
{
    char path[] = "/tmp/bypass-sendfile-XXXXXX", bytes[100] = "";
    int file = mkstemp(path), fd = dial(peer4, T_ECHO);
    unlink(path);
    value("file", write(file, bytes, sizeof bytes));
    uint64_t start = now_ms();
    for (int i = 0; i < 5; i++) {
        off_t from = 0;
        value("sendfile", sendfile(fd, file, &from, 1 << 20));
        value("recv", recv(fd, bytes, sizeof bytes, MSG_WAITALL));
    }
    yes("not held back", now_ms() - start < 700);
}
