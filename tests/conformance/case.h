/*
 * What every conformance case uses.
 *
 * A case makes calls and prints one line for each: the call, its value, errno when it failed, the
 * bytes or the readiness it gave. Nothing printed may differ between two runs on the kernel: no
 * descriptor numbers, times or ephemeral ports. The harness runs a case natively and under the
 * shim and compares the lines.
 */
#ifndef CASE_H
#define CASE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What the shim column must show about a case: how many of its datagrams the kernel carried. */
enum how {
    ACCELERATED, /* (nearly) none of them */
    MIXED,       /* fewer than natively: some of them are the kernel's on purpose */
    KERNEL,      /* all of them: the case checks that something stays with the kernel */
};

void add_case(const char *name, void (*run)(void), enum how how);

#define CASE(NAME, HOW) \
    static void run_##NAME(void); \
    __attribute__((constructor)) static void add_##NAME(void) \
    { \
        add_case(#NAME, run_##NAME, HOW); \
    } \
    static void run_##NAME(void)

/* Addresses of the two sides, and the peer's ports (see peer.c). */
extern const char *host4, *host6, *peer4, *peer6;
enum { ECHO = 7007, ECHO2 = 7017, REFUSED = 7008, SINK = 7009 };
/* And its TCP ports (see stream.h). */
enum {
    T_ECHO = 7107,
    T_REFUSED = 7108,
    T_SINK = 7109,
    T_LATE = 7110,
    T_RESET = 7111,
    T_SLOW = 7112
};

/* Prints a line. */
void line(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints the value of a call, with errno's name when it is -1; gives the value. */
long value(const char *call, long value);
/* Like value(), but "ok" for everything that is no failure: for descriptors and so on. */
long done(const char *call, long value);
/* Prints a fact as yes or no. */
void yes(const char *fact, bool true_or_not);
/* Prints length and content. */
void content(const char *call, const void *bytes, long length);
/* Prints what poll() or epoll says, by name. */
void readiness(const char *call, long count, unsigned events);

/* An address, IPv4 or IPv6 by its form ("" is IPv4 any, "::" IPv6 any). */
struct to {
    struct sockaddr_storage at;
    socklen_t length;
};
struct to at(const char *host, int port);
void print_address(const char *what, const struct sockaddr_storage *address);

/* socket() and bind(), each with its line. */
int udp(const char *host, int port);
/* The same and listen(); a connected TCP socket. */
int listener(const char *host, int port, int backlog);
int dial(const char *host, int port);
/* A connection whose other end runs the script (stream.h). */
int accepted(int port, const char *script);
/* connect(), sendto(), recvfrom() with their lines. */
int connect_to(int fd, const char *host, int port);
long send_to(int fd, const char *text, const char *host, int port);
long receive(int fd, int flags);
/* recvfrom() with the sender's address in its line. */
long receive_from(int fd, int flags);
/* poll() of one descriptor. */
int wait_for(int fd, short events, int timeout_ms);

/* Asks the peer over its control connection; gives its answer. */
const char *peer(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Waits until all is here that the peer has sent to this address before, to whatever port. */
void await_arrivals(const char *host);
/* Waits until a thread has been asleep for a while. */
void await_sleep(const _Atomic pid_t *tid);

uint64_t now_ms(void);
void pause_ms(long milliseconds);

/*
 * SIGALRM while a call waits. One that comes before the call has begun to wait (the processor was
 * elsewhere) ends nothing, natively too: what an alarm must end gets one every so many milliseconds
 * until alarm_off. What it must not end gets one, and after that the peer is told to let it end.
 */
void alarm_every(long milliseconds, int flags);
void alarm_once(long milliseconds, int flags, const char *command);
/* Ends them; prints whether there was one. */
void alarm_off(void);
extern volatile sig_atomic_t alarms;

/* Waits for a child and prints how it ended. */
void reap(pid_t child);

#endif
