//! Why an invite cannot be made, shown or redeemed.

use thiserror::Error;

use crate::invite::Invite;
use crate::policy::LimitReached;
use crate::redemption::Refusal;
use crate::store::StoreError;
use crate::token::RandomError;
use crate::value::{MAX_ATTACHED, MAX_DEPTH};

/// Every expected failure. The condition names are those that callers of the bundled module know.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InviteError {
	/// No token was given.
	#[error("no token was given")]
	NoToken,
	/// There is no such invite, it is for something else, or it was redeemed or revoked.
	#[error("there is no such invite, or it was used or revoked")]
	TokenInvalid,
	/// What a stranger entered holds no token of this host; and where the web link in it leads, if it is one.
	#[error("this is no invitation that this server knows")]
	TokenUnknown(Option<String>),
	/// What a stranger entered is a link to an invite of this other host.
	#[error("this invitation is for {0:?}")]
	OtherHost(String),
	/// Several invites have a public id that begins so.
	#[error("several invites have an id that begins so: write more of it")]
	IdAmbiguous,
	/// The account that it depends on is gone, so it was revoked just now, if nobody else was faster.
	#[error("the account that the invite depends on does not exist any more")]
	AccountGone(Option<Box<Invite>>),
	/// The account of this local user, on which it depends, is disabled.
	#[error("the account {0:?} that the invite depends on is disabled")]
	OwnerDisabled(String),
	/// The authentication provider does not find the account of this local user, or cannot ask for it: it does not say which.
	#[error("the account {0:?} was not found, or the authentication provider cannot be asked for it")]
	AccountNotFound(String),
	/// Its time is over.
	#[error("the invite has expired")]
	TokenExpired,
	/// Somebody else redeemed it first.
	#[error("the invite has been used already")]
	TokenUsed,
	/// An invite was to be made for the username of an account that exists.
	#[error("the account exists already")]
	AccountExists,
	/// A password reset was to be made for an account that does not exist.
	#[error("there is no such account")]
	AccountMissing,
	/// A password reset was to be made for an account that is disabled.
	#[error("the account is disabled")]
	AccountDisabled,
	/// More was attached to it, or given as a reason, than may be; the path of where it was too much.
	#[error("{0} makes it larger than {limit} KiB, which cannot be stored", limit = MAX_ATTACHED >> 10)]
	TooLarge(String),
	/// What is attached to it is nested too deep; the path of where it is.
	#[error("{0} is nested more than {MAX_DEPTH} tables deep, which cannot be stored")]
	TooDeep(String),
	/// Its inviter may not make it.
	#[error(transparent)]
	LimitReached(#[from] LimitReached),
	/// Everything that is left of it is claimed by others, or the username is.
	#[error("the invite, or the username, is being used right now")]
	TokenBusy,
	/// It is bound to this other username.
	#[error("the invite is for the username {0:?} only")]
	NameMismatch(String),
	/// The username is kept for the holder of another invite.
	#[error("the username is reserved")]
	NameReserved,
	/// A claim that was to be redeemed is no more, and nothing is left of the invite.
	#[error("the invite {id} was used by somebody else meanwhile, or is not there any more")]
	ClaimLost {
		/// Public id of the invite.
		id: String,
		/// Whether the account is to be taken back, if it is sure that the attempt has made it.
		is_taken_back: bool,
	},
	/// The operating system gave no random bytes.
	#[error("no random bytes for a token: {0}")]
	Random(#[from] RandomError),
	/// The store failed. Never reported as an invalid token.
	#[error(transparent)]
	Store(#[from] StoreError),
}

impl From<Refusal> for InviteError {
	fn from(refusal: Refusal) -> Self {
		match refusal {
			Refusal::Invalid => Self::TokenInvalid,
			Refusal::Used => Self::TokenUsed,
			Refusal::Busy => Self::TokenBusy,
			Refusal::Bound(name) => Self::NameMismatch(name),
			Refusal::Reserved => Self::NameReserved,
		}
	}
}

impl InviteError {
	/// The condition name returned to Lua beside `nil` (docs/design/contract.md §1).
	#[must_use]
	pub const fn condition(&self) -> &'static str {
		match self {
			Self::NoToken => "no-token",
			Self::TokenInvalid | Self::TokenUnknown(_) | Self::AccountGone(_) | Self::OwnerDisabled(_) => {
				"token-invalid"
			}
			Self::OtherHost(_) => "other-host",
			Self::AccountNotFound(_) => "account-unknown",
			Self::IdAmbiguous => "id-ambiguous",
			Self::TokenExpired => "token-expired",
			Self::TokenUsed => "token-used",
			Self::AccountExists => "conflict",
			Self::AccountMissing => "item-not-found",
			Self::AccountDisabled => "not-allowed",
			Self::TooLarge(_) | Self::TooDeep(_) => "bad-request",
			Self::LimitReached(_) => "policy-violation",
			Self::TokenBusy => "token-busy",
			Self::NameMismatch(_) => "name-mismatch",
			Self::NameReserved => "name-reserved",
			Self::ClaimLost { .. } => "claim-lost",
			Self::Store(StoreError::Unsupported { .. }) => "feature-not-implemented",
			Self::Random(_) | Self::Store(_) => "internal-server-error",
		}
	}

	/// Whether the same may succeed later: it is this server that failed, and it said nothing about the invite.
	#[must_use]
	pub const fn may_pass(&self) -> bool {
		matches!(self, Self::Random(_) | Self::Store(_))
			&& !matches!(self, Self::Store(StoreError::Unsupported { .. }))
	}
}
