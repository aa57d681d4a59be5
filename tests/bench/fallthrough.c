/*
 * What a call on a kernel descriptor costs: recv, write, epoll_wait, poll, close.
 *
 *   fallthrough [COUNT]
 *
 * Prints one line of JSON: nanoseconds per call, the best of five runs of COUNT calls (a million).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int empty_socket, null_file, set;
static struct pollfd entry;

/* Every one of these is a real, cheap system call. */
static void do_recv(void)
{
    char byte;
    recv(empty_socket, &byte, 1, MSG_DONTWAIT);
}

static void do_write(void)
{
    if (write(null_file, "x", 1) != 1)
        abort();
}

static void do_epoll_wait(void)
{
    struct epoll_event event;
    epoll_wait(set, &event, 1, 0);
}

static void do_poll(void)
{
    poll(&entry, 1, 0);
}

static void do_close(void)
{
    close(-1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static double best(void (*call)(void), long count)
{
    double least = 1e18;
    for (int run = 0; run < 5; run++) {
        uint64_t start = now_ns();
        for (long i = 0; i < count; i++)
            call();
        double each = (double)(now_ns() - start) / (double)count;
        least = each < least ? each : least;
    }
    return least;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*call)(void);
    } calls[] = {{"recv", do_recv},
                 {"write", do_write},
                 {"epoll_wait", do_epoll_wait},
                 {"poll", do_poll},
                 {"close", do_close}};
    long count = argc > 1 ? atol(argv[1]) : 1000000;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) < 0)
        return 1;
    empty_socket = pair[0];
    null_file = open("/dev/null", O_WRONLY);
    set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    if (null_file < 0 || set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, empty_socket, &event) < 0)
        return 1;
    entry = (struct pollfd){empty_socket, POLLIN, 0};
    printf("{");
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++)
        printf("%s\"%s\":%.2f", i ? "," : "", calls[i].name, best(calls[i].call, count));
    printf("}\n");
    return 0;
}
