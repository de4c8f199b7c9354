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
	Prepared(Statement, Vec<Encoded>),
}

/// A parameter as PostgreSQL takes it; none is NULL.
#[derive(Clone, Debug)]
pub(super) struct Encoded(Option<Vec<u8>>);

impl Message {
	pub(super) fn prepared(statement: Statement, params: &[Param<'_>]) -> Self {
		let encoded = |param: &Param<'_>| match *param {
			// PostgreSQL's text holds no NUL, nor does XML: nobody can present such a token.
			Param::Text(text) => Some(text.as_bytes()).filter(|text| !text.contains(&0)).map(<[u8]>::to_vec),
			Param::Bytes(bytes) => Some(bytes.to_vec()),
			Param::Number(number) => Some(number.to_be_bytes().to_vec()),
			Param::Flag(flag) => Some(vec![flag.into()]),
			Param::Null => None,
		};
		Self::Prepared(statement, params.iter().map(encoded).map(Encoded).collect())
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

impl ToSql for Encoded {
	fn to_sql(
		&self,
		_: &Type,
		out: &mut BytesMut,
	) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
		out.extend_from_slice(self.0.as_deref().unwrap_or_default());
		Ok(if self.0.is_some() { IsNull::No } else { IsNull::Yes })
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
