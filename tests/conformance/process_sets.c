/* Epoll sets that were made before a fork: one set for both sides, whoever changes it. */
#include "case.h"

#include <sys/epoll.h>

/* Two processes that go on in turns. */
struct turns {
    int ends[2][2];
    bool is_child;
    pid_t child;
};

static struct turns forks(void)
{
    struct turns turns = {0};
    pipe(turns.ends[0]);
    pipe(turns.ends[1]);
    fflush(stdout);
    turns.child = fork();
    turns.is_child = turns.child == 0;
    return turns;
}

/* The other side goes on. */
static void give(const struct turns *turns)
{
    fflush(stdout);
    if (write(turns->ends[turns->is_child][1], "t", 1) != 1)
        _exit(90);
}

/* Waits until this side's turn comes. */
static void take(const struct turns *turns)
{
    char byte;
    if (read(turns->ends[!turns->is_child][0], &byte, 1) != 1)
        _exit(91);
}

static void give_and_take(const struct turns *turns)
{
    give(turns);
    take(turns);
}

static void ends(const struct turns *turns)
{
    fflush(stdout);
    if (turns->is_child)
        _exit(4);
    reap(turns->child);
}

static int change(int set, int operation, int fd, unsigned events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    static const char *const names[] = {"", "add", "del", "mod"};
    return (int)value(names[operation], epoll_ctl(set, operation, fd, &event));
}

static int by_data(const void *one, const void *other)
{
    uint64_t a = ((const struct epoll_event *)one)->data.u64;
    uint64_t b = ((const struct epoll_event *)other)->data.u64;
    return (a > b) - (a < b);
}

/* What the set tells within the time. */
static void told(const char *who, int set, int timeout_ms)
{
    struct epoll_event ready[8];
    int count = epoll_wait(set, ready, 8, timeout_ms);
    qsort(ready, count > 0 ? (size_t)count : 0, sizeof ready[0], by_data);
    value(who, count);
    for (int i = 0; i < count; i++)
        readiness(who, (long)ready[i].data.u64, ready[i].events);
}

static void ask(int fd, bool is_stream)
{
    if (is_stream)
        value("send", send(fd, "ask", 3, 0));
    else
        send_to(fd, "ask", peer4, ECHO);
    wait_for(fd, POLLIN, 2000);
}

/* One side changes what the other is told of, and back. */
static void changes(const struct turns *turns, int set, int fd, int stream)
{
    change(set, EPOLL_CTL_DEL, fd, 0, 0);
    ask(fd, false);
    give_and_take(turns);
    change(set, EPOLL_CTL_ADD, fd, EPOLLIN, 11);
    give_and_take(turns);
    change(set, EPOLL_CTL_MOD, stream, EPOLLOUT, 12);
    give_and_take(turns);
    receive(fd, 0);
    change(set, EPOLL_CTL_MOD, stream, EPOLLIN, 13);
    give_and_take(turns);
    ask(stream, true);
    give_and_take(turns);
    receive(stream, 0);
    change(set, EPOLL_CTL_ADD, fd, EPOLLIN, 14);
    change(set, EPOLL_CTL_DEL, stream, 0, 0);
    give_and_take(turns);
    change(set, EPOLL_CTL_MOD, stream, EPOLLIN, 15);
    change(set, EPOLL_CTL_ADD, stream, EPOLLIN, 16);
    give(turns);
}

static void follows(const struct turns *turns, const char *who, int set)
{
    for (int i = 0; i < 6; i++) {
        take(turns);
        told(who, set, i == 0 || i > 2 ? 0 : 2000);
        if (i == 4)
            told(who, set, 2000);
        give(turns);
    }
    take(turns);
    told(who, set, 0);
}

CASE(process_set_changes, ACCELERATED)
{
    int set = epoll_create1(0), fd = udp(host4, 6150), stream = dial(peer4, T_ECHO);
    change(set, EPOLL_CTL_ADD, fd, EPOLLIN, 1);
    change(set, EPOLL_CTL_ADD, stream, EPOLLIN, 2);
    struct turns turns = forks();
    if (turns.is_child)
        follows(&turns, "child", set);
    else
        changes(&turns, set, fd, stream);
    if (turns.is_child) {
        give_and_take(&turns);
        changes(&turns, set, fd, stream);
    } else {
        take(&turns);
        give(&turns);
        follows(&turns, "parent", set);
    }
    ends(&turns);
}

/* Who sleeps in a wait on the set is woken by what the other side adds or changes. */
static void asleep(const struct turns *turns, const char *who, int set)
{
    give(turns);
    told(who, set, 5000);
    give(turns);
    told(who, set, 5000);
    give(turns);
}

static void wakes(const struct turns *turns, pid_t sleeper, int set, int fd)
{
    _Atomic pid_t tid = sleeper;
    struct epoll_event event = {.events = EPOLLOUT | EPOLLONESHOT};
    for (int i = 0; i < 2; i++) {
        take(turns);
        await_sleep(&tid);
        event.data.u64 = 21 + (unsigned)i;
        int result = epoll_ctl(set, i ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
        /* What the other side says comes first. */
        if (result != 0)
            value("change", result);
    }
    take(turns);
    change(set, EPOLL_CTL_DEL, fd, 0, 0);
}

CASE(process_set_asleep, ACCELERATED)
{
    int set = epoll_create1(0), fd = udp(host4, 6151), stream = dial(peer4, T_ECHO);
    send_to(fd, "first", peer4, ECHO);
    /* A set without any of a stack's would stay the kernel's alone on both sides (ADR 29). */
    change(set, EPOLL_CTL_ADD, udp(host4, 6155), EPOLLIN, 20);
    pid_t parent = getpid();
    struct turns turns = forks();
    for (int i = 0; i < 2; i++) {
        int one = i ? stream : fd;
        if (turns.is_child)
            asleep(&turns, "child", set);
        else
            wakes(&turns, turns.child, set, one);
        if (turns.is_child)
            wakes(&turns, parent, set, one);
        else
            asleep(&turns, "parent", set);
    }
    ends(&turns);
}

/* A member that tells once tells one side, and either arms it again. */
static void once(const struct turns *turns, const char *who, int set, int fd, bool is_stream)
{
    take(turns);
    told(who, set, 0);
    change(set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, 31);
    give_and_take(turns);
    told(who, set, 0);
    receive(fd, 0);
    ask(fd, is_stream);
    change(set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLONESHOT, 32);
    told(who, set, 2000);
    give(turns);
}

CASE(process_set_oneshot, ACCELERATED)
{
    for (int i = 0; i < 2; i++) {
        int set = epoll_create1(0), fd = i ? dial(peer4, T_ECHO) : udp(host4, 6152);
        change(set, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLONESHOT, 30);
        struct turns turns = forks();
        if (turns.is_child) {
            once(&turns, "child", set, fd, i);
        } else {
            ask(fd, i);
            told("parent", set, 2000);
            give_and_take(&turns);
            told("parent", set, 2000);
            told("parent", set, 0);
            give_and_take(&turns);
            told("parent", set, 0);
        }
        ends(&turns);
        close(fd);
        close(set);
    }
}

/* An edge is told to one side, the next one to whoever waits then. */
CASE(process_set_edge, ACCELERATED)
{
    for (int i = 0; i < 2; i++) {
        int set = epoll_create1(0), fd = i ? dial(peer4, T_ECHO) : udp(host4, 6153);
        change(set, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, 40);
        struct turns turns = forks();
        if (turns.is_child) {
            take(&turns);
            told("child", set, 0);
            ask(fd, i);
            told("child", set, 2000);
            give_and_take(&turns);
            change(set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLET, 41);
            give(&turns);
        } else {
            ask(fd, i);
            told("parent", set, 2000);
            give_and_take(&turns);
            told("parent", set, 0);
            give_and_take(&turns);
            told("parent", set, 2000);
            told("parent", set, 0);
        }
        ends(&turns);
        close(fd);
        close(set);
    }
}

/* A member stays as long as anybody has the file, though not who waits. */
CASE(process_set_closed, ACCELERATED)
{
    int set = epoll_create1(0), fd = udp(host4, 6154), stream = dial(peer4, T_ECHO);
    change(set, EPOLL_CTL_ADD, fd, EPOLLIN, 51);
    change(set, EPOLL_CTL_ADD, stream, EPOLLIN, 52);
    struct turns turns = forks();
    if (turns.is_child) {
        take(&turns);
        ask(fd, false);
        ask(stream, true);
        told("child", set, 2000);
        give_and_take(&turns);
        int own = dial(peer4, T_ECHO);
        change(set, EPOLL_CTL_ADD, own, EPOLLIN, 53);
        ask(own, true);
        give_and_take(&turns);
        value("close", close(own));
        give_and_take(&turns);
        value("close", close(fd) + close(stream));
        give(&turns);
    } else {
        value("close", close(fd) + close(stream));
        change(set, EPOLL_CTL_DEL, fd, 0, 0);
        give_and_take(&turns);
        told("parent", set, 2000);
        for (int i = 0; i < 3; i++) {
            give_and_take(&turns);
            told("parent", set, i == 0 ? 2000 : 0);
        }
    }
    ends(&turns);
    if (!turns.is_child)
        told("parent", set, 0);
}

/* Nor does who has been killed keep a member. */
CASE(process_set_killed, ACCELERATED)
{
    int set = epoll_create1(0), stream = dial(peer4, T_ECHO);
    change(set, EPOLL_CTL_ADD, stream, EPOLLIN, 61);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    ask(stream, true);
    told("with the child", set, 2000);
    kill(child, SIGKILL);
    value("waitpid", waitpid(child, NULL, 0) == child);
    value("close", close(stream));
    told("without it", set, 0);
}
