/* What the examples share: options, addresses, time, and a flag that SIGINT and SIGTERM set. */
#ifndef COMMON_H
#define COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static atomic_bool stopping;

static inline void on_stop(int signal_number)
{
    (void)signal_number;
    atomic_store(&stopping, true);
    alarm(1);
}

/*
 * SIGINT and SIGTERM end the program politely; a blocked call returns EINTR. A signal that comes
 * just before a call blocks interrupts nothing, so another follows each second.
 */
static inline void stop_on_signals(void)
{
    struct sigaction action = {.sa_handler = on_stop};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
}

/* Prints what failed and ends the program. */
static inline _Noreturn void fail(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (error)
        fprintf(stderr, ": %s", strerror(error));
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Processor time of this process so far, user and system. */
static inline uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void sleep_ms(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* A number from an option, in [low, high]. */
static inline long number(const char *option, const char *text, long low, long high)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high) {
        errno = 0;
        fail("--%s %s: must be a number from %ld to %ld", option, text, low, high);
    }
    return value;
}

/* An IPv4 or IPv6 address with a port; gives the length. */
static inline socklen_t address(const char *text, uint16_t port, struct sockaddr_storage *to)
{
    memset(to, 0, sizeof *to);
    struct sockaddr_in *v4 = (struct sockaddr_in *)to;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        return sizeof *v6;
    }
    errno = 0;
    fail("%s: not an IP address", text);
}

static inline int by_value(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static inline void sort_times(uint64_t *times, long count)
{
    qsort(times, (size_t)count, sizeof *times, by_value);
}

/* The value below which `share` of the sorted times lie, in microseconds. */
static inline double percentile(const uint64_t *sorted, long count, double share)
{
    if (count == 0)
        return 0;
    long index = (long)(share * (double)count);
    return (double)sorted[index < count ? index : count - 1] * 1e-3;
}

/* A UDP socket bound to an address and port. */
static inline int bound_socket(const char *text, uint16_t port, bool reuse_port)
{
    struct sockaddr_storage local;
    socklen_t length = address(text, port, &local);
    int fd = socket(local.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    int on = 1;
    if (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) < 0)
        fail("SO_REUSEPORT");
    if (bind(fd, (struct sockaddr *)&local, length) < 0)
        fail("bind %s port %u", text, port);
    return fd;
}

#endif
