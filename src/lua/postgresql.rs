//! `invite_storage = "postgresql"`, in a library that was built for it and in one that was not.

use std::sync::Arc;

use mlua::{Result as LuaResult, Table};

use super::Failure;
use crate::store::Store;

#[cfg(feature = "postgres")]
pub(super) fn open(options: &Table) -> LuaResult<Result<Arc<dyn Store>, Failure>> {
	use std::time::Duration;

	use crate::store::postgres::PostgresStore;

	/// Below this a database in good health would be given up.
	const SHORTEST_DEADLINE: Duration = Duration::from_millis(50);

	let url: Option<String> = options.get("postgresql")?;
	let deadline: Option<f64> = options.get("deadline")?;
	let deadline = deadline
		.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
		.filter(|deadline| *deadline >= SHORTEST_DEADLINE);
	let Some(deadline) = deadline else {
		return Ok(Err(Failure::Misuse(format!(
			"invite_postgresql_deadline must be a number of seconds, at least {}",
			SHORTEST_DEADLINE.as_secs_f64()
		))));
	};
	Ok(match PostgresStore::shared(&url.unwrap_or_default(), deadline) {
		Ok(store) => Ok(store),
		Err(error) => Err(Failure::Misuse(format!("invite_postgresql is not understood: {error}"))),
	})
}

#[cfg(not(feature = "postgres"))]
#[expect(clippy::unnecessary_wraps, reason = "as with PostgreSQL compiled in")]
pub(super) fn open(_: &Table) -> LuaResult<Result<Arc<dyn Store>, Failure>> {
	Ok(Err(Failure::Misuse(
		"invite_storage = \"postgresql\" needs a library that was built for it: run make build without FEATURES="
			.to_owned(),
	)))
}

/// Closes what is open, before a fork and at the end.
pub(super) fn close() {
	#[cfg(feature = "postgres")]
	crate::store::postgres::PostgresStore::close_shared();
}
