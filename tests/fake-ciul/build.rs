//! The stand-in has the soname of what it stands for.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libciul.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
