//! Links the library so that Prosody can never unmap it.

fn main() {
	// `lua_close` would unmap the library while the operating system may still return into it.
	println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
	println!("cargo:rerun-if-changed=build.rs");
}
