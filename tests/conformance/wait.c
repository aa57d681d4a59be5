/* poll, ppoll, select, pselect, blocking calls: over sockets and kernel descriptors together. */
#include "case.h"

#include <sys/eventfd.h>
#include <sys/select.h>

CASE(wait_poll, ACCELERATED)
{
    int fd = udp(host4, 5701), ends[2];
    value("pipe", pipe(ends));
    struct pollfd set[5] = {{fd, POLLIN | POLLOUT, 0},
                            {ends[0], POLLIN, 0},
                            {-1, POLLIN, 77},
                            {555, POLLIN, 0},
                            {fd, POLLIN | POLLRDNORM | POLLPRI, 0}};
    int count = poll(set, 5, 0);
    for (int i = 0; i < 5; i++)
        readiness("poll", count, (unsigned short)set[i].revents);
    peer("send %s 6000 5701 5 3 0", host4);
    wait_for(fd, POLLIN, 2000);
    count = poll(set, 5, 1000);
    for (int i = 0; i < 5; i++)
        readiness("poll", count, (unsigned short)set[i].revents);
    set[0].events = POLLIN;
    set[3].fd = -1;
    value("write", write(ends[1], "x", 1));
    count = poll(set, 5, -1);
    for (int i = 0; i < 5; i++)
        readiness("poll", count, (unsigned short)set[i].revents);
    for (int i = 0; i < 3; i++)
        receive(fd, 0);
    char byte;
    value("read", read(ends[0], &byte, 1));
    uint64_t start = now_ms();
    count = poll(set, 5, 120);
    readiness("poll", count, 0);
    yes("after 120 ms", now_ms() - start >= 115 && now_ms() - start < 3000);
    value("poll of nothing", poll(NULL, 0, 1));
    value("poll nowhere", poll((void *)8, 2, 0));
    value("close", close(fd));
    readiness("poll closed", poll(set, 1, 0), (unsigned short)set[0].revents);
}

CASE(wait_poll_wakes, ACCELERATED)
{
    int fd = udp(host4, 5702), ends[2];
    value("pipe", pipe(ends));
    for (int i = 0; i < 3; i++) {
        struct pollfd set[2] = {{ends[0], POLLIN, 0}, {fd, POLLIN, 0}};
        peer("late %s 6000 5702 5 1 60", host4);
        int count = poll(set, 2, 3000);
        readiness("pipe", count, (unsigned short)set[0].revents);
        readiness("socket", count, (unsigned short)set[1].revents);
        receive_from(fd, 0);
    }
    struct pollfd set[2] = {{ends[0], POLLIN, 0}, {fd, POLLIN, 0}};
    pid_t child = fork();
    if (child == 0) {
        pause_ms(60);
        _exit(write(ends[1], "x", 1) != 1);
    }
    int count = poll(set, 2, 3000);
    readiness("pipe", count, (unsigned short)set[0].revents);
    readiness("socket", count, (unsigned short)set[1].revents);
    reap(child);
}

CASE(wait_ppoll, ACCELERATED)
{
    int fd = udp(host4, 5703);
    struct pollfd set = {fd, POLLIN, 0};
    struct timespec limit = {.tv_nsec = 50000000};
    readiness("ppoll", ppoll(&set, 1, &limit, NULL), (unsigned short)set.revents);
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5703 5 1 50", host4);
        readiness("ppoll", ppoll(&set, 1, NULL, NULL), (unsigned short)set.revents);
        receive(fd, 0);
    }
    limit.tv_nsec = -1;
    value("bad limit", ppoll(&set, 1, &limit, NULL));
}

CASE(wait_select, ACCELERATED)
{
    int fd = udp(host4, 5704), ends[2];
    value("pipe", pipe(ends));
    fd_set in, out, extra;
    struct timeval limit = {0};
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&extra);
    FD_SET(fd, &in);
    FD_SET(ends[0], &in);
    FD_SET(fd, &out);
    FD_SET(fd, &extra);
    value("select", select(64, &in, &out, &extra, &limit));
    yes("in", FD_ISSET(fd, &in));
    yes("out", FD_ISSET(fd, &out));
    yes("extra", FD_ISSET(fd, &extra));
    yes("pipe", FD_ISSET(ends[0], &in));
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5704 5 1 50", host4);
        FD_SET(fd, &in);
        FD_SET(ends[0], &in);
        value("select", select(64, &in, NULL, NULL, NULL));
        yes("in", FD_ISSET(fd, &in));
        yes("pipe", FD_ISSET(ends[0], &in));
        receive_from(fd, 0);
    }
    value("write", write(ends[1], "x", 1));
    FD_SET(fd, &in);
    FD_SET(ends[0], &in);
    limit.tv_sec = 20;
    value("select", select(64, &in, NULL, NULL, &limit));
    yes("in", FD_ISSET(fd, &in));
    yes("pipe", FD_ISSET(ends[0], &in));
    yes("time is left", limit.tv_sec >= 10 && limit.tv_sec < 20);
    FD_ZERO(&in);
    FD_SET(fd, &in);
    limit = (struct timeval){.tv_usec = 60000};
    value("select", select(64, &in, NULL, NULL, &limit));
    line("left %ld.%06ld", (long)limit.tv_sec, (long)limit.tv_usec);
    struct timespec short_time = {.tv_nsec = 40000000};
    FD_SET(fd, &in);
    value("pselect", pselect(64, &in, NULL, NULL, &short_time, NULL));
    FD_ZERO(&in);
    FD_SET(500, &in);
    value("select of a closed one", select(501, &in, NULL, NULL, &limit));
    value("select, negative", select(-1, &in, NULL, NULL, &limit));
}

/* A signal ends every blocking call; with SA_RESTART it ends the waiting ones only. */
CASE(wait_eintr, ACCELERATED)
{
    int fd = udp(host4, 5705);
    struct pollfd set = {fd, POLLIN, 0};
    fd_set in;
    FD_ZERO(&in);
    alarm_every(50, 0);
    receive(fd, 0);
    struct msghdr message = {0};
    value("recvmsg", recvmsg(fd, &message, 0));
    struct mmsghdr many[2] = {{{0}, 0}, {{0}, 0}};
    value("recvmmsg", recvmmsg(fd, many, 2, 0, NULL));
    char byte;
    value("read", read(fd, &byte, 1));
    value("poll", poll(&set, 1, -1));
    value("ppoll", ppoll(&set, 1, NULL, NULL));
    FD_SET(fd, &in);
    value("select", select(64, &in, NULL, NULL, NULL));
    alarm_off();
    alarm_every(50, SA_RESTART);
    value("poll, SA_RESTART", poll(&set, 1, -1));
    FD_SET(fd, &in);
    value("select, SA_RESTART", select(64, &in, NULL, NULL, NULL));
    alarm_off();
    char send_one[99];
    snprintf(send_one, sizeof send_one, "send %s 6000 5705 5 1 0", host4);
    for (int i = 0; i < 2; i++) {
        alarm_once(50, SA_RESTART, send_one);
        receive(fd, 0);
        alarm_off();
    }
    /* With a time limit on the socket not even SA_RESTART restarts. */
    struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    alarm_every(50, SA_RESTART);
    receive(fd, 0);
    alarm_off();
}

/* A signal that is blocked but let through by ppoll and pselect. */
CASE(wait_signal_mask, ACCELERATED)
{
    int fd = udp(host4, 5706);
    struct pollfd set = {fd, POLLIN, 0};
    sigset_t blocked, none;
    sigemptyset(&none);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    alarm_once(1, 0, NULL);
    pause_ms(20);
    struct timespec limit = {.tv_sec = 5};
    value("poll, blocked", poll(&set, 1, 30));
    value("ppoll, let through", ppoll(&set, 1, &limit, &none));
    alarm_off();
    alarm_once(1, 0, NULL);
    pause_ms(20);
    fd_set in;
    FD_ZERO(&in);
    FD_SET(fd, &in);
    value("pselect, let through", pselect(64, &in, NULL, NULL, &limit, &none));
    alarm_off();
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5706 5 1 40", host4);
        readiness("ppoll", ppoll(&set, 1, &limit, &blocked), (unsigned short)set.revents);
        receive(fd, 0);
    }
}

/* Blocked until something comes; several in a row. */
CASE(wait_blocking, ACCELERATED)
{
    int fd = udp(host4, 5707);
    for (int i = 0; i < 3; i++) {
        uint64_t start = now_ms();
        peer("late %s 6000 5707 8 1 50", host4);
        receive_from(fd, 0);
        yes("waited", now_ms() - start >= 45 && now_ms() - start < 3000);
    }
}

static void *blocked_reader(void *argument)
{
    char bytes[64];
    long got = recv(*(int *)argument, bytes, sizeof bytes, 0);
    return (void *)got;
}

/* Two threads wait in recv on one socket: each gets one datagram. */
CASE(wait_two_threads, ACCELERATED)
{
    int fd = udp(host4, 5708);
    for (int round = 0; round < 3; round++) {
        pthread_t threads[2];
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, blocked_reader, &fd);
        pause_ms(30);
        peer("send %s 6000 5708 9 2 20000", host4);
        for (int i = 0; i < 2; i++) {
            void *got;
            pthread_join(threads[i], &got);
            value("thread's recv", (long)got);
        }
    }
}

/* shutdown() from another thread ends a blocked recv. */
CASE(wait_shutdown_wakes, ACCELERATED)
{
    int fd = udp(host4, 5709);
    connect_to(fd, peer4, ECHO);
    for (int i = 0; i < 3; i++) {
        value("send", send(fd, "x", 1, 0));
        wait_for(fd, POLLIN, 2000);
        receive(fd, 0);
    }
    pthread_t thread;
    pthread_create(&thread, NULL, blocked_reader, &fd);
    pause_ms(50);
    value("shutdown", shutdown(fd, SHUT_RDWR));
    void *got;
    pthread_join(thread, &got);
    value("thread's recv", (long)got);
}
