//! What is sent to PostgreSQL, and what comes back.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Error, Row, Statement};

use super::connection::Trouble;
use crate::store::TxError;
use crate::store::sql::{Columns, Param};

/// A statement that is to be run.
#[derive(Clone)]
pub(super) enum Message {
	/// As it is.
	Text(&'static str),
	/// One that was compiled, with its parameters.
	Prepared(Statement, Vec<Owned>),
}

/// A parameter that waits to be sent.
#[derive(Clone, Debug)]
pub(super) enum Owned {
	Null,
	Text(String),
	Bytes(Vec<u8>),
	Number(i64),
	Flag(bool),
}

impl Message {
	pub(super) fn prepared(statement: Statement, params: &[Param<'_>]) -> Self {
		let owned = |param: &Param<'_>| match *param {
			// PostgreSQL's text holds no NUL, nor does XML: nobody can present such a token.
			Param::Text(text) if text.contains('\0') => Owned::Null,
			Param::Text(text) => Owned::Text(text.to_owned()),
			Param::Bytes(bytes) => Owned::Bytes(bytes.to_owned()),
			Param::Number(number) => Owned::Number(number),
			Param::Flag(flag) => Owned::Flag(flag),
			Param::Null => Owned::Null,
		};
		Self::Prepared(statement, params.iter().map(owned).collect())
	}

	async fn send(self, client: &Client) -> Result<Vec<Row>, Error> {
		match self {
			Self::Text(text) => client.batch_execute(text).await.map(|()| Vec::new()),
			Self::Prepared(statement, params) => {
				let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param as _).collect();
				client.query(&statement, &params).await
			}
		}
	}
}

/// Sends messages in their order, without waiting for an answer before the next one. The rows of each, or the error of the
/// first that failed.
pub(super) async fn exchange(client: &Client, messages: Vec<Message>) -> Result<Vec<Vec<Row>>, Error> {
	type Sent<'a> = Pin<Box<dyn Future<Output = Result<Vec<Row>, Error>> + 'a>>;
	let mut sent: Vec<Sent<'_>> =
		messages.into_iter().map(|message| Box::pin(message.send(client)) as Sent<'_>).collect();
	let mut answers: Vec<Option<Result<Vec<Row>, Error>>> = sent.iter().map(|_| None).collect();
	// A message is sent when its future is polled first.
	poll_fn(|context| {
		let mut is_done = true;
		for (sent, answer) in sent.iter_mut().zip(&mut answers) {
			if answer.is_none() {
				match sent.as_mut().poll(context) {
					Poll::Ready(answered) => *answer = Some(answered),
					Poll::Pending => is_done = false,
				}
			}
		}
		if is_done { Poll::Ready(()) } else { Poll::Pending }
	})
	.await;
	answers.into_iter().flatten().collect()
}

impl ToSql for Owned {
	fn to_sql(
		&self,
		ty: &Type,
		out: &mut BytesMut,
	) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
		match self {
			Self::Null => Ok(IsNull::Yes),
			Self::Text(text) => text.to_sql(ty, out),
			Self::Bytes(bytes) => bytes.to_sql(ty, out),
			Self::Number(number) => number.to_sql(ty, out),
			Self::Flag(flag) => flag.to_sql(ty, out),
		}
	}

	fn accepts(_: &Type) -> bool {
		// What the statements of this module ask for.
		true
	}

	to_sql_checked!();
}

fn postgres(error: Error) -> TxError {
	Trouble::from(error).into()
}

impl Columns for Row {
	fn text(&self, column: usize) -> Result<Option<&str>, TxError> {
		self.try_get(column).map_err(postgres)
	}

	fn number(&self, column: usize) -> Result<Option<i64>, TxError> {
		self.try_get(column).map_err(postgres)
	}

	fn bytes(&self, column: usize) -> Result<&[u8], TxError> {
		self.try_get(column).map_err(postgres)
	}

	fn flag(&self, column: usize) -> Result<bool, TxError> {
		self.try_get(column).map_err(postgres)
	}
}
