//! What is shown of invites, and what is not.

use super::*;
use crate::invite::Type;
use crate::redemption::Purpose;
use crate::store::conformance::sample;
use crate::token::Nonce;
use crate::value::Fields;

const NOW: Timestamp = 1_700_000_000;

fn noted(note: &[u8]) -> Invite {
	let note = [(Value::text("note"), Value::Str(note.to_vec()))];
	let data = Value::Table(note.into_iter().collect());
	let fields: Fields = [(Value::text("additional_data"), data)].into_iter().collect();
	Invite {
		invite_type: Type::Register,
		username: None,
		expires: None,
		fields,
		..sample("example.com", "secret")
	}
}

/// Notes as somebody might write them: plain, wide, combining, and hostile.
fn notes() -> [Invite; 4] {
	[
		noted(b"plain"),
		noted("日本語の長いノートです、とても長い".as_bytes()),
		noted("e\u{301}a\u{308} combining marks and more".as_bytes()),
		noted(b"\x1b[31mred\n\xff\xe2\x80\xae turned"),
	]
}

fn listing(width: u16) -> String {
	let listing = Listing::new(Part::Open, false, width);
	listing.header() + &listing.page(&notes(), true, NOW)
}

#[test]
fn a_listing_fits_80_columns_whatever_is_in_the_notes() {
	let golden = "\
ID               STATE   EXPIRES          KIND    USES    ABOUT
2bb80d537b1da3e3 pending never            account 0/1     plain (account)
2bb80d537b1da3e3 pending never            account 0/1     日本語の長いノートで…
2bb80d537b1da3e3 pending never            account 0/1     e\u{301}a\u{308} combining marks an…
2bb80d537b1da3e3 pending never            account 0/1     \\u{1b}[31mred\\n\\xff\\u…
";
	assert_eq!(listing(80), golden);
}

#[test]
fn a_listing_fits_40_columns_by_leaving_columns_out() {
	let golden = "\
ID               STATE   ABOUT
2bb80d537b1da3e3 pending plain (account)
2bb80d537b1da3e3 pending 日本語の長いノ…
2bb80d537b1da3e3 pending e\u{301}a\u{308} combining m…
2bb80d537b1da3e3 pending \\u{1b}[31mred\\…
";
	assert_eq!(listing(40), golden);
}

#[test]
fn a_link_is_never_cut_off() {
	let listing = Listing::new(Part::Open, true, 40);
	assert!(listing.page(&notes(), true, NOW).contains("\n  xmpp:example.com?register;preauth=secret\n"));
	let detail = Detail { show_token: true, is_in_band: true, redemptions: None };
	assert!(text(&notes()[0], detail, NOW, 20).ends_with("\nxmpp:example.com?register;preauth=secret\n"));
}

#[test]
fn without_being_asked_for_the_token_is_nowhere() {
	let used = [redemption()];
	let detail = Detail { show_token: false, is_in_band: true, redemptions: Some(&used) };
	for invite in notes() {
		let shown = [
			text(&invite, detail, NOW, 80),
			json(&invite, detail, NOW),
			Listing::new(Part::Open, false, 200).page(&[invite], true, NOW),
		];
		assert!(shown.iter().all(|shown| !shown.contains("secret")), "{shown:?}");
	}
}

fn redemption() -> Redemption {
	Redemption {
		nonce: Nonce::from_bytes([0; 16]),
		purpose: Purpose::Account,
		invitee: Some("bob\u{7}".to_owned()),
		source: Some("mod_register".to_owned()),
		used_at: NOW,
	}
}

#[test]
fn the_end_of_an_invite_says_who_and_why() {
	let over = Invite {
		revoked_at: Some(NOW),
		revoked_why: Some("lost\nphone".to_owned()),
		revoked_by: Some("shell".to_owned()),
		ended_at: Some(NOW),
		..noted(b"for the fair")
	};
	let used = [redemption()];
	let shown = text(&over, Detail { show_token: true, is_in_band: true, redemptions: Some(&used) }, NOW, 80);
	for said in
		["state      revoked", "revoked by shell", "because    lost\\nphone", "by bob\\u{7} (mod_register)"]
	{
		assert!(shown.contains(said), "{shown}");
	}
	let listed = Listing::new(Part::History, false, 120).page(&[over], true, NOW);
	assert!(listed.contains("for the fair (account), by shell: lost\\nphone"), "{listed}");
}

#[test]
fn text_that_turns_around_or_breaks_a_line_is_written_out() {
	for (text, escaped) in [
		("a\u{202e}b", "a\\u{202e}b"),
		("a\u{2066}b", "a\\u{2066}b"),
		("a\u{2028}b", "a\\u{2028}b"),
		("a\u{9b}b", "a\\u{9b}b"),
		("tab\there", "tab\\there"),
		("שלום", "שלום"),
		("👩‍👩‍👧", "👩‍👩‍👧"),
	] {
		assert_eq!(escape(text.as_bytes()), escaped);
		assert_eq!(escape(escaped.as_bytes()), escaped);
	}
}

#[test]
fn a_qr_code_has_a_light_border_and_its_size_is_that_of_the_link() {
	let code = qr("xmpp:example.com?register;preauth=abcdefabcdefabcdefabcdef").unwrap();
	let lines: Vec<_> = code.lines().collect();
	assert_eq!(lines.len(), 21);
	assert!(lines.iter().all(|line| line.chars().count() == 41));
	assert!(lines[..2].iter().all(|line| line.chars().all(|block| block == '█')));
	assert!(lines.iter().all(|line| line.starts_with('█') || line.starts_with('▀')));
	assert_eq!(qr(&"x".repeat(5000)), None);
}
