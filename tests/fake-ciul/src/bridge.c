/* The vendor's libciul with the stand-in's driver and card in the place of its own.
 *
 *   dlsym of what is named here ──► the stand-in (STAND_IN), which is told of the vendor's library
 *   dlsym of anything else      ──► the vendor's library (VENDOR), which this one needs
 *
 * cc -shared -fPIC -DSTAND_IN='"…"' -DVENDOR='"…"' bridge.c -Wl,--no-as-needed VENDOR
 *    -Wl,-rpath,FOLDER
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define NAMES(name) \
    name(ef_driver_open) name(ef_driver_close) \
    name(ef_pd_alloc_by_name) name(ef_pd_interface_name) name(ef_pd_free) \
    name(ef_vi_alloc_from_pd) name(ef_vi_alloc_from_set) name(ef_vi_free) name(ef_vi_flush) \
    name(ef_vi_set_alloc_from_pd) name(ef_vi_set_free) \
    name(ef_vi_set_filter_add) name(ef_vi_set_filter_del) \
    name(ef_vi_filter_add) name(ef_vi_filter_del) \
    name(ef_vi_mtu) name(ef_vi_get_mac) name(ef_vi_prime) \
    name(ef_memreg_alloc) name(ef_memreg_free) \
    name(fake_ciul_set) name(fake_ciul_live)

/* A jump to where the stand-in has the function, whatever its type. */
#define JUMP(name) \
    __attribute__((used)) static void *name##_there; \
    __asm__(".pushsection .text\n" \
            ".globl " #name "\n" \
            ".type " #name ", @function\n" \
            #name ": jmp *" #name "_there(%rip)\n" \
            ".popsection");

NAMES(JUMP)

#define FIND(name) \
    if (!(name##_there = dlsym(stand_in, #name))) \
        die();

static void die(void)
{
    fprintf(stderr, "%s\n", dlerror());
    abort();
}

__attribute__((constructor)) static void find(void)
{
    void *stand_in = dlopen(STAND_IN, RTLD_NOW | RTLD_LOCAL);
    if (!stand_in)
        die();
    NAMES(FIND)
    ((void (*)(const char *, const char *))fake_ciul_set_there)("VENDOR", VENDOR);
}
