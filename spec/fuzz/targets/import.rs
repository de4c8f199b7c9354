//! Any file is refused with nothing imported, or imported so that what is exported then imports as the same again.

#![no_main]

use std::io::Cursor;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use prosody_invites::invites::Invites;
use prosody_invites::store::memory::MemoryStore;
use prosody_invites::transfer::{ImportError, Terms, export, import};

const TERMS: Terms<'_> =
	Terms { prepare: &|name| Some(name.to_lowercase()), is_shared: false, progress: &|_, _| () };

fn imported(text: &[u8]) -> (Vec<u8>, Result<u64, ImportError>) {
	let invites = Invites::new("example.com".to_owned(), Arc::new(MemoryStore::default()));
	let result = import(&invites, &mut Cursor::new(text), &TERMS);
	let mut exported = Vec::new();
	export(&invites, None, &mut exported).unwrap();
	(exported, result.map(|done| done.imported))
}

fuzz_target!(|text: &[u8]| {
	let (first, result) = imported(text);
	if result.is_err() {
		assert!(first.is_empty());
	}
	let (second, result) = imported(&first);
	assert!(result.is_ok());
	assert_eq!(String::from_utf8_lossy(&first), String::from_utf8_lossy(&second));
});
