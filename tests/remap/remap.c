/*
 * For tests only: a preload library that makes programs which insist on 127.0.0.1 use the address
 * in REMAP_TO instead. 127.0.0.1 is replaced on the way in (bind, connect, sendto, sendmsg) and put
 * back on the way out (accept, getsockname, getpeername, recvfrom, recvmsg).
 *
 *   LD_PRELOAD="libremap.so libbypass.so" REMAP_TO=198.18.7.1 python3 -m test test_socket
 *
 * With REMAP_STREAMS TCP connects to that address instead, which is to lead back to REMAP_TO.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static in_addr_t other, streams;

__attribute__((constructor)) static void start(void)
{
    const char *text = getenv("REMAP_TO");
    struct in_addr address;
    if (text && inet_pton(AF_INET, text, &address) == 1)
        other = address.s_addr;
    text = getenv("REMAP_STREAMS");
    if (text && inet_pton(AF_INET, text, &address) == 1)
        streams = address.s_addr;
}

static void replace(struct sockaddr *address, socklen_t length, in_addr_t from, in_addr_t to)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)address;
    if (other && address && length >= sizeof *v4 && v4->sin_family == AF_INET &&
        v4->sin_addr.s_addr == from)
        v4->sin_addr.s_addr = to;
}

/* A copy with the address that is really used; `room` holds it. */
static const struct sockaddr *in(const struct sockaddr *address, socklen_t length,
                                 struct sockaddr_storage *room)
{
    if (!other || !address || length < sizeof(struct sockaddr_in) || length > sizeof *room ||
        address->sa_family != AF_INET)
        return address;
    memcpy(room, address, length);
    replace((struct sockaddr *)room, length, htonl(INADDR_LOOPBACK), other);
    return (struct sockaddr *)room;
}

static void out(struct sockaddr *address, const socklen_t *length)
{
    if (!address || !length)
        return;
    replace(address, *length, other, htonl(INADDR_LOOPBACK));
    if (streams)
        replace(address, *length, streams, htonl(INADDR_LOOPBACK));
}

#define NEXT(NAME) ((__typeof__(&NAME))dlsym(RTLD_NEXT, #NAME))

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_storage room;
    return NEXT(bind)(fd, in(address, length, &room), length);
}

static bool is_stream(int fd)
{
    int type = 0;
    socklen_t length = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_storage room;
    const struct sockaddr *to = in(address, length, &room);
    if (to == (struct sockaddr *)&room && streams && is_stream(fd))
        replace((struct sockaddr *)&room, length, other, streams);
    return NEXT(connect)(fd, to, length);
}

ssize_t sendto(int fd, const void *bytes, size_t size, int flags, const struct sockaddr *address,
               socklen_t length)
{
    struct sockaddr_storage room;
    return NEXT(sendto)(fd, bytes, size, flags, in(address, length, &room), length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct sockaddr_storage room;
    if (!message || !message->msg_name)
        return NEXT(sendmsg)(fd, message, flags);
    struct msghdr copy = *message;
    copy.msg_name = (void *)in(message->msg_name, message->msg_namelen, &room);
    return NEXT(sendmsg)(fd, &copy, flags);
}

ssize_t recvfrom(int fd, void *bytes, size_t size, int flags, struct sockaddr *address,
                 socklen_t *length)
{
    ssize_t got = NEXT(recvfrom)(fd, bytes, size, flags, address, length);
    if (got >= 0)
        out(address, length);
    return got;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t got = NEXT(recvmsg)(fd, message, flags);
    if (got >= 0)
        out(message->msg_name, &message->msg_namelen);
    return got;
}

int accept(int fd, struct sockaddr *address, socklen_t *length)
{
    int got = NEXT(accept)(fd, address, length);
    if (got >= 0)
        out(address, length);
    return got;
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int got = NEXT(accept4)(fd, address, length, flags);
    if (got >= 0)
        out(address, length);
    return got;
}

int getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
    int result = NEXT(getsockname)(fd, address, length);
    if (result == 0)
        out(address, length);
    return result;
}

int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    int result = NEXT(getpeername)(fd, address, length);
    if (result == 0)
        out(address, length);
    return result;
}
