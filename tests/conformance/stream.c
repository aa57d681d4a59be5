/* See stream.h. */
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct {
    atomic_int running;
    atomic_long bytes;
    atomic_int error;
    atomic_int go;
} *shared;

/* fork() of a child that ends with its parent. */
static pid_t helper(void)
{
    pid_t child = fork();
    if (child == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
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

static void send_pattern(int fd, long count)
{
    char bytes[4096];
    for (long sent = 0; sent < count;) {
        long length = count - sent < (long)sizeof bytes ? count - sent : (long)sizeof bytes;
        for (long i = 0; i < length; i++)
            bytes[i] = (char)('a' + (sent + i) % 26);
        ssize_t put = send(fd, bytes, (size_t)length, MSG_NOSIGNAL);
        if (put <= 0)
            return;
        sent += put;
    }
}

/* Reads up to `count` bytes (-1: until the end), echoing them if asked. */
static void take(int fd, long count, int echo)
{
    char bytes[16384];
    while (count != 0) {
        size_t most = count < 0 || count > (long)sizeof bytes ? sizeof bytes : (size_t)count;
        ssize_t got = recv(fd, bytes, most, 0);
        if (got < 0)
            shared->error = errno;
        if (got <= 0)
            return;
        shared->bytes += got;
        if (count > 0)
            count -= got;
        for (ssize_t put = 0; echo && put < got;) {
            ssize_t now = send(fd, bytes + put, (size_t)(got - put), MSG_NOSIGNAL);
            if (now <= 0)
                return;
            put += now;
        }
    }
}

/* Sends the pattern with its last byte urgent. */
static void send_urgent(int fd, long count)
{
    char last = (char)('a' + (count - 1) % 26);
    send_pattern(fd, count - 1);
    send(fd, &last, 1, MSG_OOB | MSG_NOSIGNAL);
}

/* Waits for an urgent byte and sends it back as a normal one. */
static void return_urgent(int fd)
{
    struct pollfd entry = {fd, POLLPRI, 0};
    char byte = '-';
    poll(&entry, 1, 3000);
    recv(fd, &byte, 1, MSG_OOB);
    send(fd, &byte, 1, MSG_NOSIGNAL);
}

/* Until stream_go(); each call of that ends one wait. */
static void hold(void)
{
    struct timespec tick = {0, 1000000};
    while (shared->go == 0)
        nanosleep(&tick, NULL);
    shared->go--;
}

static void run(int fd, const char *script)
{
    char *words = strdup(script), *rest = words, *word;
    while ((word = strsep(&rest, " "))) {
        long number = *word ? atol(word + 1) : 0;
        struct linger reset = {1, 0};
        struct timespec pause = {number / 1000, number % 1000 * 1000000};
        switch (*word) {
        case 's': send_pattern(fd, number); break;
        case 'g': take(fd, number, 0); break;
        case 'w': take(fd, -1, 0); break;
        case 'e': take(fd, -1, 1); break;
        case 'f': shutdown(fd, SHUT_WR); break;
        case 'u': send_urgent(fd, number); break;
        case 'o': return_urgent(fd); break;
        case 'h': hold(); break;
        case 'p': nanosleep(&pause, NULL); break;
        case 'x': setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset); break;
        }
    }
    close(fd);
    free(words);
}

/* The listeners: a connection that waits at one of them has not ended. */
static struct pollfd doors[16];
static nfds_t door_count;

static void serve(const char *host, int port, const char *script)
{
    struct sockaddr_storage local;
    socklen_t length = at(host, port, &local);
    int fd = socket(local.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, most = 64;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &most, sizeof most);
    if (bind(fd, (struct sockaddr *)&local, length) < 0 || listen(fd, 64) < 0) {
        perror("stream listener");
        exit(1);
    }
    if (helper() != 0) {
        doors[door_count++] = (struct pollfd){fd, POLLIN, 0};
        return;
    }
    for (;;) {
        /* Counted before it is accepted: until then the door shows it. */
        poll(&(struct pollfd){fd, POLLIN, 0}, 1, -1);
        shared->running++;
        int one = accept(fd, NULL, NULL);
        if (one < 0) {
            shared->running--;
            continue;
        }
        shared->bytes = 0;
        shared->error = 0;
        if (helper() == 0) {
            run(one, script);
            shared->running--;
            _exit(0);
        }
        close(one);
    }
}

/* The servers of this network namespace give Fast Open cookies. */
static void give_cookies(void)
{
    FILE *setting = fopen("/proc/sys/net/ipv4/tcp_fastopen", "w");
    if (!setting || fputs("3", setting) < 0 || fclose(setting) != 0) {
        perror("tcp_fastopen");
        exit(1);
    }
}

void stream_servers(const char *address4, const char *address6)
{
    give_cookies();
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const char *hosts[] = {address4, address6};
    for (int i = 0; i < 2; i++) {
        serve(hosts[i], 7107, "e");
        serve(hosts[i], 7109, "w");
        serve(hosts[i], 7110, "w s70000");
        serve(hosts[i], 7111, "g1 x");
        serve(hosts[i], 7112, "g1 p100 w");
    }
}

void stream_dial(const char *host, int port, const char *script)
{
    shared->running++;
    shared->bytes = 0;
    shared->error = 0;
    if (helper() != 0)
        return;
    struct sockaddr_storage to;
    socklen_t length = at(host, port, &to);
    int fd = socket(to.ss_family, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, length) < 0)
        shared->error = errno;
    else
        run(fd, script);
    shared->running--;
    _exit(0);
}

void stream_go(void)
{
    shared->go++;
}

void stream_result(char *reply, size_t room)
{
    struct timespec tick = {0, 1000000};
    for (int i = 0; i < 20000 && (poll(doors, door_count, 0) > 0 || shared->running > 0); i++)
        nanosleep(&tick, NULL);
    const char *end = shared->error ? strerrorname_np(shared->error) : "EOF";
    snprintf(reply, room, "%ld %s%s\n", (long)shared->bytes, end,
             shared->running > 0 ? ", still there" : "");
}
