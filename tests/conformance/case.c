/* Runs one case: see case.h. `conformance CASE`, or `conformance --list`. */
#include "case.h"

#include <stdarg.h>

static struct {
    const char *name;
    void (*run)(void);
    enum how how;
} cases[300];
static int case_count;

const char *host4, *host6, *peer4, *peer6;
static int control = -1;

void add_case(const char *name, void (*run)(void), enum how how)
{
    cases[case_count].name = name;
    cases[case_count].run = run;
    cases[case_count++].how = how;
}

void line(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
}

long value(const char *call, long value)
{
    int error = errno;
    if (value == -1)
        line("%s = -1 %s", call, strerrorname_np(error));
    else
        line("%s = %ld", call, value);
    errno = error;
    return value;
}

long done(const char *call, long value)
{
    int error = errno;
    if (value == -1)
        line("%s = -1 %s", call, strerrorname_np(error));
    else
        line("%s = ok", call);
    errno = error;
    return value;
}

void yes(const char *fact, bool true_or_not)
{
    line("%s: %s", fact, true_or_not ? "yes" : "no");
}

/* Fletcher's sum: enough to see that bytes are the same. */
static unsigned sum_of(const unsigned char *bytes, long length)
{
    unsigned a = 1, b = 0;
    for (long i = 0; i < length; i++) {
        a = (a + bytes[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

void content(const char *call, const void *bytes, long length)
{
    if (length < 0) {
        value(call, length);
        return;
    }
    char shown[17] = "";
    const unsigned char *from = bytes;
    for (long i = 0; i < length && i < 16; i++)
        shown[i] = from[i] >= ' ' && from[i] < 127 ? (char)from[i] : '.';
    line("%s = %ld \"%s\" sum %08x", call, length, shown, sum_of(bytes, length));
}

void readiness(const char *call, long count, unsigned events)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{POLLIN, " in"},        {POLLPRI, " pri"},     {POLLOUT, " out"},
                 {POLLERR, " err"},      {POLLHUP, " hup"},     {POLLNVAL, " nval"},
                 {POLLRDNORM, " rdnorm"}, {POLLWRNORM, " wrnorm"}, {POLLRDHUP, " rdhup"}};
    char text[80] = "";
    if (count == -1) {
        value(call, count);
        return;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (events & names[i].bit)
            strcat(text, names[i].name);
    line("%s = %ld:%s", call, count, text);
}

struct to at(const char *host, int port)
{
    struct to to = {0};
    struct sockaddr_in *v4 = (struct sockaddr_in *)&to.at;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&to.at;
    if (strchr(host, ':')) {
        inet_pton(AF_INET6, host, &v6->sin6_addr);
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        to.length = sizeof *v6;
    } else {
        if (*host)
            inet_pton(AF_INET, host, &v4->sin_addr);
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        to.length = sizeof *v4;
    }
    return to;
}

void print_address(const char *what, const struct sockaddr_storage *address)
{
    char text[INET6_ADDRSTRLEN] = "?";
    unsigned port = 0;
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)address;
        inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
        port = ntohs(v4->sin_port);
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)address;
        inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
        port = ntohs(v6->sin6_port);
    }
    if (port >= 32768)
        line("%s %s port ephemeral", what, text);
    else
        line("%s %s port %u", what, text, port);
}

int udp(const char *host, int port)
{
    struct to local = at(host, port);
    int fd = socket(local.at.ss_family, SOCK_DGRAM, 0);
    done("socket", fd);
    char call[80];
    snprintf(call, sizeof call, "bind %s %d", *host ? host : "any", port);
    value(call, bind(fd, (struct sockaddr *)&local.at, local.length));
    return fd;
}

int listener(const char *host, int port, int backlog)
{
    struct to local = at(host, port);
    int fd = socket(local.at.ss_family, SOCK_STREAM, 0), on = 1;
    done("socket", fd);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    char call[80];
    snprintf(call, sizeof call, "bind %s %d", *host ? host : "any", port);
    value(call, bind(fd, (struct sockaddr *)&local.at, local.length));
    value("listen", listen(fd, backlog));
    return fd;
}

int dial(const char *host, int port)
{
    int fd = socket(strchr(host, ':') ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    done("socket", fd);
    connect_to(fd, host, port);
    return fd;
}

int accepted(int port, const char *script)
{
    int local = listener(host4, port, 5);
    peer("dial %s %d %s", host4, port, script);
    int fd = accept(local, NULL, NULL);
    done("accept", fd);
    close(local);
    return fd;
}

int connect_to(int fd, const char *host, int port)
{
    struct to to = at(host, port);
    char call[80];
    snprintf(call, sizeof call, "connect %s %d", host, port);
    return (int)value(call, connect(fd, (struct sockaddr *)&to.at, to.length));
}

long send_to(int fd, const char *text, const char *host, int port)
{
    struct to to = at(host, port);
    char call[80];
    snprintf(call, sizeof call, "sendto %s %d", host, port);
    return value(call, sendto(fd, text, strlen(text), 0, (struct sockaddr *)&to.at, to.length));
}

long receive(int fd, int flags)
{
    static char bytes[70000];
    long got = recv(fd, bytes, sizeof bytes, flags);
    content("recv", bytes, got);
    return got;
}

long receive_from(int fd, int flags)
{
    static char bytes[70000];
    struct sockaddr_storage from = {0};
    socklen_t length = sizeof from;
    long got = recvfrom(fd, bytes, sizeof bytes, flags, (struct sockaddr *)&from, &length);
    content("recvfrom", bytes, got);
    if (got >= 0) {
        print_address("  from", &from);
        line("  address length %u", length);
    }
    return got;
}

int wait_for(int fd, short events, int timeout_ms)
{
    struct pollfd entry = {fd, events, 0};
    int count = poll(&entry, 1, timeout_ms);
    readiness("poll", count, (unsigned short)entry.revents);
    return count;
}

const char *peer(const char *format, ...)
{
    static char answer[256];
    char command[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(command, sizeof command - 1, format, arguments);
    va_end(arguments);
    command[length++] = '\n';
    if (control < 0) {
        struct to to = at(peer4, 7000);
        control = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(control, (struct sockaddr *)&to.at, to.length) < 0) {
            perror("control connection");
            exit(3);
        }
        /* High and out of the way of cases that close many descriptors. */
        int high = fcntl(control, F_DUPFD_CLOEXEC, 900);
        close(control);
        control = high;
    }
    if (write(control, command, (size_t)length) != length) {
        perror("control write");
        exit(3);
    }
    size_t have = 0;
    while (have < sizeof answer - 1) {
        ssize_t got = read(control, answer + have, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != 1) {
            perror("control read");
            exit(3);
        }
        if (answer[have] == '\n')
            break;
        have++;
    }
    answer[have] = 0;
    return answer;
}

void await_arrivals(const char *host)
{
    struct to local = at(host, 5999);
    int fd = socket(local.at.ss_family, SOCK_DGRAM, 0);
    if (bind(fd, (struct sockaddr *)&local.at, local.length) < 0)
        line("await_arrivals: %s", strerrorname_np(errno));
    peer("send %s 6000 5999 1 1 0", host);
    if (poll(&(struct pollfd){fd, POLLIN, 0}, 1, 5000) != 1)
        line("nothing arrives");
    close(fd);
}

/* How often a thread has gone to sleep; -1 while it runs. */
static long sleeps(pid_t tid)
{
    char path[64], text[80];
    long times = -1;
    bool asleep = false;
    snprintf(path, sizeof path, "/proc/%d/status", tid);
    FILE *file = fopen(path, "r");
    while (file && fgets(text, sizeof text, file)) {
        if (strncmp(text, "State:\tS", 8) == 0)
            asleep = true;
        sscanf(text, "voluntary_ctxt_switches: %ld", &times);
    }
    if (file)
        fclose(file);
    return asleep ? times : -1;
}

void await_sleep(const _Atomic pid_t *tid)
{
    uint64_t end = now_ms() + 5000;
    for (long before = -1, now; now_ms() < end; before = now) {
        pause_ms(50);
        now = *tid ? sleeps(*tid) : -1;
        if (now >= 0 && now == before)
            break;
    }
}

uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void pause_ms(long milliseconds)
{
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

volatile sig_atomic_t alarms;
static pthread_t teller;
static bool tells;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

static void alarm_in(long milliseconds, long again, int flags)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
    struct itimerval time = {{0, again * 1000}, {0, milliseconds * 1000}};
    alarms = 0;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &time, NULL);
}

void alarm_every(long milliseconds, int flags)
{
    alarm_in(milliseconds, milliseconds, flags);
}

static void *tell(void *command)
{
    while (alarms == 0)
        pause_ms(1);
    pause_ms(20);
    peer("%s", (const char *)command);
    return NULL;
}

void alarm_once(long milliseconds, int flags, const char *command)
{
    sigset_t alarm, old;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    alarms = 0;
    if (command) {
        /* The thread leaves the signal to this one. */
        pthread_sigmask(SIG_BLOCK, &alarm, &old);
        pthread_create(&teller, NULL, tell, (void *)command);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        tells = true;
    }
    alarm_in(milliseconds, 0, flags);
}

void alarm_off(void)
{
    struct itimerval none = {{0}, {0}};
    setitimer(ITIMER_REAL, &none, NULL);
    if (tells)
        pthread_join(teller, NULL);
    tells = false;
    yes("alarm", alarms > 0);
}

void reap(pid_t child)
{
    int status = 0;
    if (waitpid(child, &status, 0) != child)
        line("waitpid failed: %s", strerrorname_np(errno));
    else if (WIFSIGNALED(status))
        line("child: signal %d", WTERMSIG(status));
    else
        line("child: exit %d", WEXITSTATUS(status));
}

static const char *variable(const char *name)
{
    const char *text = getenv(name);
    if (!text) {
        fprintf(stderr, "%s is not set\n", name);
        exit(2);
    }
    return text;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"accelerated", "mixed", "kernel"};
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (int i = 0; i < case_count; i++)
            line("%s %s", cases[i].name, names[cases[i].how]);
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    host4 = variable("HOST4");
    host6 = variable("HOST6");
    peer4 = variable("PEER4");
    peer6 = variable("PEER6");
    for (int i = 0; argc == 2 && i < case_count; i++) {
        if (strcmp(cases[i].name, argv[1]) == 0) {
            cases[i].run();
            line("end");
            return 0;
        }
    }
    fprintf(stderr, "usage: conformance CASE | --list\n");
    return 2;
}
