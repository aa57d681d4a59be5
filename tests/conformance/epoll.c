/* epoll in all its modes, over accelerated and kernel descriptors in one set. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static void add(int set, int fd, unsigned events, unsigned tag)
{
    struct epoll_event event = {.events = events, .data.u32 = tag};
    value("epoll_ctl ADD", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static void modify(int set, int fd, unsigned events, unsigned tag)
{
    struct epoll_event event = {.events = events, .data.u32 = tag};
    value("epoll_ctl MOD", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
}

static int by_tag(const void *left, const void *right)
{
    const struct epoll_event *a = left, *b = right;
    return (int)a->data.u32 - (int)b->data.u32;
}

/* epoll_wait with its events in the order of their tags. */
static int look(int set, int timeout_ms)
{
    struct epoll_event ready[16];
    int count = epoll_wait(set, ready, 16, timeout_ms);
    value("epoll_wait", count);
    if (count > 0)
        qsort(ready, (size_t)count, sizeof ready[0], by_tag);
    for (int i = 0; i < count; i++) {
        char call[32];
        snprintf(call, sizeof call, "  tag %u", ready[i].data.u32);
        readiness(call, count, ready[i].events);
    }
    return count;
}

static int make(void)
{
    int set = epoll_create1(EPOLL_CLOEXEC);
    done("epoll_create1", set);
    return set;
}

CASE(epoll_level, ACCELERATED)
{
    int fd = udp(host4, 5801), set = make();
    add(set, fd, EPOLLIN, 1);
    look(set, 0);
    peer("send %s 6000 5801 5 2 0", host4);
    look(set, 2000);
    look(set, 0);
    receive(fd, 0);
    look(set, 2000);
    receive(fd, 0);
    look(set, 0);
    modify(set, fd, EPOLLIN | EPOLLOUT, 2);
    look(set, 0);
    modify(set, fd, 0, 3);
    peer("send %s 6000 5801 5 1 0", host4);
    look(set, 50);
    modify(set, fd, EPOLLIN, 4);
    look(set, 2000);
    value("epoll_ctl DEL", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    look(set, 0);
    for (int i = 0; i < 3; i++) {
        receive(fd, MSG_DONTWAIT);
        peer("send %s 6000 5801 5 1 0", host4);
        wait_for(fd, POLLIN, 2000);
    }
}

/* Members come and go between two waits: the second has nothing to tell. */
CASE(epoll_comes_and_goes, ACCELERATED)
{
    int fd = udp(host4, 5821), set = make();
    add(set, fd, EPOLLIN, 1);
    look(set, 0);
    value("epoll_ctl DEL", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    add(set, fd, EPOLLIN, 2);
    value("epoll_ctl DEL", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    look(set, 0);
    add(set, fd, EPOLLIN, 3);
    close(fd);
    look(set, 0);
    int other = udp(host4, 5822);
    add(set, other, EPOLLIN, 4);
    peer("send %s 6000 5822 5 1 0", host4);
    look(set, 2000);
}

CASE(epoll_et, ACCELERATED)
{
    int fd = udp(host4, 5802), set = make();
    add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, 1);
    look(set, 0);
    look(set, 0);
    peer("send %s 6000 5802 5 1 0", host4);
    look(set, 2000);
    look(set, 50);
    peer("send %s 6000 5802 5 1 0", host4);
    line("new data reports again although some is unread");
    look(set, 2000);
    look(set, 50);
    receive(fd, 0);
    line("reading makes no edge");
    look(set, 50);
    modify(set, fd, EPOLLIN | EPOLLET, 2);
    line("MOD arms again");
    look(set, 2000);
    look(set, 50);
    receive(fd, 0);
    receive(fd, MSG_DONTWAIT);
    modify(set, fd, EPOLLIN | EPOLLET, 3);
    look(set, 50);
    peer("late %s 6000 5802 5 1 60", host4);
    look(set, 2000);
    receive(fd, 0);
}

CASE(epoll_oneshot, ACCELERATED)
{
    int fd = udp(host4, 5803), set = make();
    add(set, fd, EPOLLIN | EPOLLONESHOT, 1);
    peer("send %s 6000 5803 5 3 0", host4);
    look(set, 2000);
    look(set, 50);
    receive(fd, 0);
    look(set, 50);
    modify(set, fd, EPOLLIN | EPOLLONESHOT, 2);
    look(set, 2000);
    look(set, 50);
    receive(fd, 0);
    receive(fd, 0);
    modify(set, fd, EPOLLIN | EPOLLONESHOT, 3);
    look(set, 50);
    peer("late %s 6000 5803 5 1 60", host4);
    look(set, 2000);
    peer("send %s 6000 5803 5 1 0", host4);
    look(set, 50);
}

/* Each of six kinds of descriptor alone wakes a set. */
CASE(epoll_mixed, ACCELERATED)
{
    int fd = udp(host4, 5804), set = make(), ends[2], pair[2];
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int event = eventfd(0, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int signal_fd = signalfd(-1, &signals, SFD_NONBLOCK);
    value("pipe", pipe(ends));
    value("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    add(set, fd, EPOLLIN, 1);
    add(set, event, EPOLLIN, 2);
    add(set, timer, EPOLLIN, 3);
    add(set, ends[0], EPOLLIN, 4);
    add(set, pair[0], EPOLLIN, 5);
    add(set, signal_fd, EPOLLIN, 6);
    look(set, 0);
    uint64_t number = 1;
    char bytes[256];
    for (int round = 0; round < 3; round++) {
        peer("late %s 6000 5804 5 1 40", host4);
        look(set, -1);
        receive(fd, 0);
        value("eventfd", write(event, &number, sizeof number));
        look(set, -1);
        value("read", read(event, &number, sizeof number));
        struct itimerspec time = {.it_value = {.tv_nsec = 40000000}};
        timerfd_settime(timer, 0, &time, NULL);
        look(set, -1);
        value("read", read(timer, &number, sizeof number));
        number = 1;
        value("pipe", write(ends[1], "x", 1));
        look(set, -1);
        value("read", read(ends[0], bytes, 1));
        value("unix", send(pair[1], "x", 1, 0));
        look(set, -1);
        value("read", recv(pair[0], bytes, 1, 0));
        kill(getpid(), SIGUSR1);
        look(set, -1);
        done("read", read(signal_fd, bytes, sizeof bytes));
    }
    peer("send %s 6000 5804 5 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    value("pipe", write(ends[1], "x", 1));
    value("eventfd", write(event, &number, sizeof number));
    look(set, -1);
}

/* Members are added while the program has no descriptor left, and serve as well as others. */
CASE(epoll_no_descriptor_left, ACCELERATED)
{
    int fd = udp(host4, 5819), set = make(), ends[2], last = -1, dup_of;
    value("pipe", pipe(ends));
    /* The peer is spoken to over a descriptor, too. */
    peer("send %s 6000 5819 5 1 0", host4);
    wait_for(fd, POLLIN, 2000);
    receive(fd, 0);
    struct rlimit limit;
    value("getrlimit", getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = 64;
    value("setrlimit", setrlimit(RLIMIT_NOFILE, &limit));
    int first = dup(0);
    while ((dup_of = dup(0)) >= 0)
        last = dup_of;
    value("dup", dup_of);
    add(set, fd, EPOLLIN, 1);
    add(set, ends[0], EPOLLIN, 2);
    look(set, 0);
    char bytes[8];
    for (int round = 0; round < 3; round++) {
        peer("late %s 6000 5819 5 1 40", host4);
        look(set, -1);
        receive(fd, 0);
        value("pipe", write(ends[1], "x", 1));
        look(set, -1);
        value("read", read(ends[0], bytes, 1));
        look(set, 0);
        /* From the second round on there are some again. */
        for (; first >= 0 && first <= last; first++)
            close(first);
    }
}

static int thread_event;

static void *write_event(void *argument)
{
    uint64_t one = 1;
    pause_ms(60);
    return write(thread_event, &one, sizeof one) == sizeof one ? NULL : argument;
}

/* A thread's eventfd ends a wait without time limit, while the set holds an accelerated socket. */
CASE(epoll_xthread, ACCELERATED)
{
    int fd = udp(host4, 5805), set = make();
    thread_event = eventfd(0, 0);
    add(set, fd, EPOLLIN, 1);
    add(set, thread_event, EPOLLIN, 2);
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5805 5 1 20", host4);
        look(set, -1);
        receive(fd, 0);
        pthread_t thread;
        pthread_create(&thread, NULL, write_event, NULL);
        look(set, -1);
        pthread_join(thread, NULL);
        uint64_t number;
        value("read", read(thread_event, &number, sizeof number));
    }
}

static int late_set, late_fd;

static void *add_late(void *argument)
{
    (void)argument;
    pause_ms(60);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 9};
    epoll_ctl(late_set, EPOLL_CTL_ADD, late_fd, &event);
    return NULL;
}

/* A socket with unread data is added by another thread while one waits. */
CASE(epoll_add_while_waiting, ACCELERATED)
{
    late_fd = udp(host4, 5806);
    late_set = make();
    int other = eventfd(0, 0);
    add(late_set, other, EPOLLIN, 1);
    for (int i = 0; i < 3; i++) {
        peer("send %s 6000 5806 5 1 0", host4);
        wait_for(late_fd, POLLIN, 2000);
        pthread_t thread;
        pthread_create(&thread, NULL, add_late, NULL);
        look(late_set, 2000);
        pthread_join(thread, NULL);
        receive(late_fd, 0);
        value("epoll_ctl DEL", epoll_ctl(late_set, EPOLL_CTL_DEL, late_fd, NULL));
    }
}

/* tokio: registers through a dup of the set, waits on the original. */
CASE(epoll_dup, ACCELERATED)
{
    int fd = udp(host4, 5807), set = make();
    int copy = dup(fcntl(set, F_DUPFD_CLOEXEC, 20));
    done("dup", copy);
    add(copy, fd, EPOLLIN, 1);
    add(set, fd, EPOLLIN, 2);
    for (int i = 0; i < 3; i++) {
        peer("send %s 6000 5807 5 1 0", host4);
        look(set, 2000);
        look(copy, 2000);
        receive(fd, 0);
    }
    modify(copy, fd, EPOLLIN | EPOLLOUT, 3);
    look(set, 0);
    value("epoll_ctl DEL", epoll_ctl(copy, EPOLL_CTL_DEL, fd, NULL));
    value("epoll_ctl DEL", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    modify(set, fd, EPOLLIN, 4);
    value("close", close(set));
    add(copy, fd, EPOLLIN, 5);
    peer("send %s 6000 5807 5 1 0", host4);
    look(copy, 2000);
}

/* A registration lives as long as any dup of the socket. */
CASE(epoll_lifetime, ACCELERATED)
{
    int fd = udp(host4, 5808), set = make();
    add(set, fd, EPOLLIN, 1);
    int copy = dup(fd);
    done("dup", copy);
    add(set, copy, EPOLLIN, 2);
    peer("send %s 6000 5808 5 3 0", host4);
    wait_for(fd, POLLIN, 2000);
    look(set, 2000);
    value("close", close(fd));
    line("the first number is closed, its registration stays");
    look(set, 2000);
    receive(copy, 0);
    receive(copy, 0);
    look(set, 2000);
    value("close", close(copy));
    look(set, 50);
    int file = open("/dev/null", O_RDONLY), plain = open("/etc/passwd", O_RDONLY);
    struct epoll_event event = {.events = EPOLLIN};
    value("ADD a file", epoll_ctl(set, EPOLL_CTL_ADD, plain, &event));
    value("ADD -1", epoll_ctl(set, EPOLL_CTL_ADD, -1, &event));
    value("ADD itself", epoll_ctl(set, EPOLL_CTL_ADD, set, &event));
    value("ADD to a file", epoll_ctl(file, EPOLL_CTL_ADD, plain, &event));
    int again = udp(host4, 5808);
    value("ADD nowhere", epoll_ctl(set, EPOLL_CTL_ADD, again, (void *)8));
    value("unknown command", epoll_ctl(set, 77, again, &event));
    value("MOD absent", epoll_ctl(set, EPOLL_CTL_MOD, again, &event));
    value("DEL absent", epoll_ctl(set, EPOLL_CTL_DEL, again, &event));
    struct epoll_event ready[4];
    value("epoll_wait 0 events", epoll_wait(set, ready, 0, 0));
    value("epoll_wait -1 events", epoll_wait(set, ready, -1, 0));
    value("epoll_wait closed", epoll_wait(555, ready, 4, 0));
    value("epoll_wait on a socket", epoll_wait(again, ready, 4, 0));
    value("epoll_wait nowhere", epoll_wait(set, (void *)8, 4, 0));
}

/* Epoll inside epoll, poll and select. */
CASE(epoll_nested, ACCELERATED)
{
    int fd = udp(host4, 5809), inner = make(), outer = make();
    add(inner, fd, EPOLLIN, 1);
    add(outer, inner, EPOLLIN, 2);
    look(outer, 0);
    wait_for(inner, POLLIN, 0);
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5809 5 1 40", host4);
        if (i == 0)
            look(outer, 2000);
        else if (i == 1)
            wait_for(inner, POLLIN, 2000);
        fd_set in;
        FD_ZERO(&in);
        FD_SET(inner, &in);
        struct timeval limit = {.tv_sec = 2};
        value("select", select(inner + 1, &in, NULL, NULL, &limit));
        look(inner, 0);
        receive(fd, 0);
        look(outer, 0);
    }
}

/* memcached: one socket dup'ed into several sets; all report, one reads. */
CASE(epoll_dup_in_two_sets, ACCELERATED)
{
    int fd = udp(host4, 5810), copy = dup(fd), first = make(), second = make();
    fcntl(fd, F_SETFL, O_NONBLOCK);
    add(first, fd, EPOLLIN, 1);
    add(second, copy, EPOLLIN, 2);
    for (int i = 0; i < 3; i++) {
        peer("send %s 6000 5810 5 1 0", host4);
        look(first, 2000);
        look(second, 2000);
        receive(copy, 0);
        receive(fd, 0);
        look(first, 50);
        look(second, 50);
    }
}

CASE(epoll_exclusive, ACCELERATED)
{
    int fd = udp(host4, 5811), set = make();
    add(set, fd, EPOLLIN | EPOLLEXCLUSIVE, 1);
    for (int i = 0; i < 3; i++) {
        peer("late %s 6000 5811 5 1 30", host4);
        look(set, 2000);
        receive(fd, 0);
    }
    struct epoll_event event = {.events = EPOLLIN};
    value("MOD of exclusive", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    value("epoll_ctl DEL", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    event.events = EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT;
    value("ADD exclusive and one-shot", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

/* Errors are reported whether asked for or not. */
CASE(epoll_error, MIXED)
{
    int fd = udp(host4, 5812), set = make();
    connect_to(fd, peer4, ECHO);
    add(set, fd, EPOLLIN, 1);
    for (int i = 0; i < 4; i++) {
        value("send", send(fd, "fine", 4, 0));
        look(set, 2000);
        receive(fd, 0);
    }
    connect_to(fd, peer4, REFUSED);
    modify(set, fd, 0, 2);
    value("send", send(fd, "anybody?", 8, 0));
    look(set, 2000);
    receive(fd, MSG_DONTWAIT);
    look(set, 50);
}

/* A socket that leaves for the kernel (its peer is on this host from now on) stays a member. */
CASE(epoll_leaves, MIXED)
{
    int other = udp("127.0.0.1", 5818), fd = udp("", 5817), set = make();
    add(set, fd, EPOLLIN, 1);
    peer("send %s 6000 5817 5 3 0", host4);
    for (int i = 0; i < 3; i++) {
        look(set, 2000);
        receive(fd, 0);
    }
    connect_to(fd, "127.0.0.1", 5818);
    look(set, 0);
    connect_to(other, "127.0.0.1", 5817);
    value("send", send(other, "here", 4, 0));
    look(set, 2000);
    receive(fd, MSG_DONTWAIT);
    look(set, 0);
}

CASE(epoll_pwait, ACCELERATED)
{
    int fd = udp(host4, 5813), set = make();
    add(set, fd, EPOLLIN, 1);
    struct epoll_event ready[4];
    sigset_t none;
    sigemptyset(&none);
    struct timespec limit = {.tv_nsec = 30000000};
    value("epoll_pwait", epoll_pwait(set, ready, 4, 30, &none));
    value("epoll_pwait2", epoll_pwait2(set, ready, 4, &limit, NULL));
    for (int i = 0; i < 2; i++) {
        peer("late %s 6000 5813 5 2 30", host4);
        value("epoll_pwait", epoll_pwait(set, ready, 4, -1, &none));
        receive(fd, 0);
        value("epoll_pwait2", epoll_pwait2(set, ready, 4, NULL, NULL));
        receive(fd, 0);
    }
    uint64_t start = now_ms();
    look(set, 130);
    yes("after 130 ms", now_ms() - start >= 125 && now_ms() - start < 3000);
}

/* maxevents 1 over three ready sockets: none starves (knot, PostgreSQL). */
CASE(epoll_fairness, ACCELERATED)
{
    int sockets[3], set = make(), seen[3] = {0};
    for (int i = 0; i < 3; i++) {
        sockets[i] = udp(host4, 5814 + i);
        add(set, sockets[i], EPOLLIN, (unsigned)i);
        peer("send %s 6000 %d 5 2 0", host4, 5814 + i);
    }
    for (int i = 0; i < 3; i++)
        wait_for(sockets[i], POLLIN, 2000);
    for (int i = 0; i < 12; i++) {
        struct epoll_event ready;
        if (epoll_wait(set, &ready, 1, 1000) == 1)
            seen[ready.data.u32 % 3]++;
    }
    for (int i = 0; i < 3; i++)
        yes("seen", seen[i] > 0);
}
