/* TCP: poll, select and epoll. */
#include "case.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

static int set_of(int fd, unsigned events)
{
    int set = epoll_create1(0);
    done("epoll_create1", set);
    struct epoll_event event = {.events = events, .data.u32 = 5};
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    return set;
}

static void events(int set, int timeout_ms)
{
    struct epoll_event found[8];
    int count = epoll_wait(set, found, 8, timeout_ms);
    unsigned all = 0;
    for (int i = 0; i < count; i++)
        all |= found[i].events;
    readiness("epoll_wait", count, all);
}

CASE(tcp_poll, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    wait_for(fd, POLLIN | POLLOUT, 1000);
    wait_for(fd, POLLIN, 0);
    value("write", write(fd, "abc", 3));
    wait_for(fd, POLLIN | POLLRDNORM, 3000);
    receive(fd, 0);
    wait_for(fd, POLLIN, 50);
    value("shutdown", shutdown(fd, SHUT_WR));
    wait_for(fd, POLLIN | POLLRDHUP, 3000);
    wait_for(fd, POLLIN | POLLOUT | POLLRDHUP, 3000);
    wait_for(fd, 0, 0);
    receive(fd, 0);
    close(fd);
    wait_for(fd, POLLIN, 0);
}

CASE(tcp_poll_listener, ACCELERATED)
{
    int fd = listener(host4, 6220, 5);
    wait_for(fd, POLLIN | POLLOUT, 0);
    line("%s", peer("dial %s 6220 w", host4));
    wait_for(fd, POLLIN | POLLOUT, 3000);
    int one = accept(fd, NULL, NULL);
    done("accept", one);
    wait_for(fd, POLLIN, 0);
    wait_for(one, POLLIN | POLLOUT, 0);
    /* The peer waits for the ends of both, and for long if one has none. */
    close(one);
    line("%s", peer("dial %s 6220 x", host4));
    line("%s", peer("dialled"));
    wait_for(fd, POLLIN, 3000);
    int two = accept(fd, NULL, NULL);
    done("accept", two);
    receive(two, 0);
    receive(two, 0);
}

CASE(tcp_select, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), pipes[2];
    value("pipe", pipe(pipes));
    for (int round = 0; round < 3; round++) {
        fd_set in, out;
        FD_ZERO(&in);
        FD_ZERO(&out);
        FD_SET(fd, &in);
        FD_SET(pipes[0], &in);
        if (round != 1)
            FD_SET(fd, &out);
        struct timeval time = {5, 0};
        if (round == 1)
            value("write", write(fd, "abc", 3));
        if (round == 2)
            value("pipe", write(pipes[1], "x", 1));
        value("select", select(1024, &in, &out, NULL, &time));
        line("  in %d out %d pipe %d", FD_ISSET(fd, &in), FD_ISSET(fd, &out),
             FD_ISSET(pipes[0], &in));
    }
}

CASE(tcp_epoll_edges, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO);
    int set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    events(set, 1000);
    events(set, 0);
    value("write", write(fd, "abc", 3));
    events(set, 3000);
    events(set, 50);
    value("write", write(fd, "def", 3));
    events(set, 3000);
    receive(fd, 0);
    events(set, 0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
    value("MOD", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    events(set, 0);
    events(set, 0);
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
    value("MOD", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    events(set, 0);
    value("shutdown", shutdown(fd, SHUT_WR));
    events(set, 3000);
    receive(fd, 0);
    value("ADD again", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    value("DEL", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    value("DEL again", epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
}

CASE(tcp_epoll_level, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), set = set_of(fd, EPOLLIN);
    events(set, 0);
    value("write", write(fd, "abcdef", 6));
    for (int i = 0; i < 2; i++) {
        char bytes[8] = "";
        events(set, 3000);
        content("recv", bytes, recv(fd, bytes, 3, 0));
    }
    events(set, 50);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLONESHOT};
    value("MOD", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    events(set, 0);
    events(set, 0);
    value("write", write(fd, "abc", 3));
    events(set, 50);
    value("MOD", epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    events(set, 1000);
    value("close", close(fd));
    events(set, 0);
}

CASE(tcp_epoll_pressure, ACCELERATED)
{
    static char bytes[1 << 16];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect_to(fd, peer4, T_SLOW);
    int set = set_of(fd, EPOLLOUT | EPOLLET);
    long total = 8 << 20, waits = 0;
    while (total > 0) {
        struct epoll_event found;
        if (epoll_wait(set, &found, 1, 5000) != 1) {
            line("no room came");
            return;
        }
        waits++;
        for (;;) {
            size_t length = total < (long)sizeof bytes ? (size_t)total : sizeof bytes;
            ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
            if (sent <= 0)
                break;
            total -= sent;
        }
    }
    yes("it waited", waits > 1);
    close(fd);
    line("%s", peer("dialled"));
}

/* Served one after the other, then the program waits elsewhere: what it wrote arrives. */
CASE(tcp_epoll_several, ACCELERATED)
{
    int local = listener(host4, 6226, 16), other = dial(peer4, T_ECHO);
    line("%s", peer("dial %s 6226 s3 g4", host4));
    int fd = accept(local, NULL, NULL);
    done("accept", fd);
    int set = set_of(fd, EPOLLIN);
    struct epoll_event found[8], event = {.events = EPOLLIN, .data.u32 = 6};
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, other, &event));
    value("write", write(other, "abc", 3));
    int count = 0;
    for (int i = 0; i < 1000 && count < 2; i++) {
        count = epoll_wait(set, found, 8, 3000);
        if (count == 1)
            usleep(1000);
    }
    value("ready", count);
    receive(fd, 0);
    receive(other, 0);
    value("write", write(fd, "12", 2));
    value("write", write(fd, "34", 2));
    line("%s", peer("dialled"));
    value("write", write(other, "d", 1));
    wait_for(other, POLLIN, 3000);
    receive(other, 0);
}

CASE(tcp_epoll_mixed, ACCELERATED)
{
    int fd = listener(host4, 6221, 16), wake = eventfd(0, 0);
    int set = set_of(fd, EPOLLIN);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 1};
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, wake, &event));
    events(set, 0);
    value("eventfd", write(wake, &(uint64_t){1}, 8));
    events(set, 1000);
    value("eventfd", read(wake, &(uint64_t){0}, 8));
    line("%s", peer("dial %s 6221 p100 s5 w", host4));
    events(set, 3000);
    int one = accept(fd, NULL, NULL);
    event.events = EPOLLIN | EPOLLRDHUP;
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, one, &event));
    events(set, 3000);
    receive(one, 0);
    events(set, 0);
    close(one);
    line("%s", peer("dialled"));
}

/*
 * A set that a connection keeps busy, and connections that the kernel's listener serves: the set
 * tells of each until it is accepted, and not once more.
 */
CASE(tcp_epoll_both, MIXED)
{
    int busy = dial(peer4, T_ECHO), fd = listener("", 6255, 5), set = set_of(fd, EPOLLIN);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 1}, ready[2];
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, busy, &event));
    value("write", write(busy, "abc", 3));
    wait_for(busy, POLLIN, 2000);
    for (int turn = 0; turn < 3; turn++) {
        int local = dial("127.0.0.1", 6255);
        wait_for(fd, POLLIN, 2000);
        for (int i = 0; i < 3; i++) {
            /* A set that is busy asks the kernel from time to time only. */
            pause_ms(1);
            value("epoll_wait", epoll_wait(set, ready, 2, 2000));
        }
        int one = accept(fd, NULL, NULL);
        done("accept", one);
        for (int i = 0; i < 2; i++) {
            value("epoll_wait", epoll_wait(set, ready, 2, 2000));
            yes("the busy one", ready[0].data.u32 == 1);
        }
        close(one);
        close(local);
    }
    receive(busy, 0);
    events(set, 0);
}

static void *waits_in_epoll(void *argument)
{
    events(*(int *)argument, 5000);
    return NULL;
}

CASE(tcp_epoll_threads, ACCELERATED)
{
    int fd = dial(peer4, T_ECHO), set = epoll_create1(0);
    pthread_t thread;
    pthread_create(&thread, NULL, waits_in_epoll, &set);
    pause_ms(100);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    pause_ms(50);
    yes("written", write(fd, "abc", 3) == 3 && pthread_join(thread, NULL) == 0);
    receive(fd, 0);
}

enum { ROUNDS = 3000 };

/* Waits for a connection that never comes; how often it has gone to sleep for that. */
static void *waits_for_nobody(void *argument)
{
    accept(*(int *)argument, NULL, NULL);
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (void *)usage.ru_nvcsw;
}

/* The traffic of one socket does not wake who waits for another. */
CASE(tcp_quiet_thread, ACCELERATED)
{
    int quiet = listener(host4, 7300, 4), fd = dial(peer4, T_ECHO), answered = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, waits_for_nobody, &quiet);
    pause_ms(50);
    for (int round = 0; round < ROUNDS; round++) {
        char byte = 'a';
        answered += write(fd, &byte, 1) == 1 && read(fd, &byte, 1) == 1;
    }
    yes("all answered", answered == ROUNDS);
    value("shutdown", shutdown(quiet, SHUT_RD));
    void *sleeps;
    pthread_join(thread, &sleeps);
    yes("the quiet thread slept", (long)sleeps < ROUNDS / 3);
}

CASE(tcp_epoll_connect, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLET);
    events(set, 0);
    connect_to(fd, peer4, T_ECHO);
    events(set, 3000);
    value("write", write(fd, "abc", 3));
    events(set, 3000);
    receive(fd, 0);
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect_to(fd, peer4, T_REFUSED);
    set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    events(set, 3000);
    events(set, 0);
}

/* A set keeps a socket whose connect has failed, and hears of the next one. */
static void connect_again(unsigned mode)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect_to(fd, peer4, T_REFUSED);
    int set = set_of(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | mode);
    events(set, 3000);
    connect_to(fd, peer4, T_ECHO);
    events(set, 0);
    connect_to(fd, peer4, T_ECHO);
    events(set, 3000);
    value("write", write(fd, "abc", 3));
    wait_for(fd, POLLIN, 3000);
    events(set, 0);
    receive(fd, 0);
    close(fd);
    events(set, 0);
    close(set);
}

CASE(tcp_epoll_connect_again, ACCELERATED)
{
    connect_again(0);
    connect_again(EPOLLET);
}

/* A member that was closed before it was connected is no member, whoever has its number. */
CASE(tcp_epoll_number_again, ACCELERATED)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int set = set_of(fd, EPOLLIN | EPOLLOUT);
    close(fd);
    int again = dial(peer4, T_ECHO);
    yes("the number again", again == fd);
    events(set, 0);
    struct epoll_event event = {.events = EPOLLOUT, .data.u32 = 5};
    value("ADD", epoll_ctl(set, EPOLL_CTL_ADD, again, &event));
    events(set, 0);
    value("write", write(again, "abc", 3));
    receive(again, 0);
}

CASE(tcp_epoll_shut_listener, ACCELERATED)
{
    int fd = listener(host4, 6226, 5);
    int set = set_of(fd, EPOLLIN | EPOLLOUT);
    line("%s", peer("dial %s 6226 x", host4));
    events(set, 3000);
    done("accept", accept(fd, NULL, NULL));
    line("%s", peer("dialled"));
    events(set, 0);
    value("shutdown", shutdown(fd, SHUT_RDWR));
    events(set, 0);
}

CASE(tcp_many, ACCELERATED)
{
    enum { MANY = 200 };
    int fds[MANY], set = epoll_create1(0), fd = listener(host4, 6222, 256);
    for (int i = 0; i < MANY; i++)
        peer("dial %s 6222 s10 w", host4);
    for (int i = 0; i < MANY; i++) {
        fds[i] = accept(fd, NULL, NULL);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i]};
        if (fds[i] < 0 || epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event) < 0)
            line("number %d: %s", i, strerrorname_np(errno));
    }
    long total = 0, served = 0;
    while (served < MANY) {
        struct epoll_event found[16];
        int count = epoll_wait(set, found, 16, 5000);
        if (count <= 0)
            break;
        for (int i = 0; i < count; i++) {
            char bytes[32];
            total += recv(found[i].data.fd, bytes, sizeof bytes, 0);
            served++;
            close(found[i].data.fd);
        }
    }
    line("served %ld, %ld bytes", served, total);
    line("%s", peer("dialled"));
}
