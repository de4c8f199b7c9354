//! Where the database is and how it is to be trusted: the connection string, and the environment for what it leaves out.
//!
//! The string is a URL as PostgreSQL's own tools take it. Nothing here, `Debug` included, shows what it says but host,
//! port and database: it may hold a password, and a mistake in it may put a part of that anywhere.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Where Debian's PostgreSQL has its socket.
const SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// Where a PostgreSQL database is.
pub(super) struct Address {
	config: Config,
	/// Whose signature its certificate must bear; none: without TLS.
	trust: Option<Trust>,
	name: String,
}

enum Trust {
	/// The certificate authorities of the system.
	System,
	/// Those in this file.
	File(PathBuf),
}

/// Why a connection string is no good. Says nothing of what it holds.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
	/// It is none.
	#[error(
		"it must be a URL such as postgresql://user:password@host/database, where special characters of the \
		password are written as % and two digits"
	)]
	NoUrl,
	/// More than one part of it may be the host.
	#[error("it has more than one @: write the one in the password as %40")]
	TwoHosts,
	/// An `sslmode` that would not verify with whom it talks.
	#[error(
		"its sslmode must be verify-full, which is the default, or disable: others do not verify the server"
	)]
	Mode,
	/// TLS on a Unix-domain socket.
	#[error("sslmode=verify-full needs the name of a host: there is no TLS on a Unix-domain socket")]
	SocketMode,
}

/// Certificates that cannot be had.
#[derive(Debug, Error)]
pub(super) enum TrustError {
	#[error("sslrootcert={} cannot be read: {}", .0.display(), .1)]
	Unreadable(PathBuf, #[source] rustls::pki_types::pem::Error),
	#[error("sslrootcert={} holds no certificate that can be used", .0.display())]
	Empty(PathBuf),
	#[error("this system has no certificates of authorities: name those to trust as sslrootcert=FILE")]
	NoSystem,
	#[error("TLS cannot be set up: {0}")]
	Setup(#[from] rustls::Error),
}

impl Address {
	/// Reads a URL; an empty one leaves everything to the environment. `environment` looks a variable up: those that
	/// are read are `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE`, `PGSSLMODE` and `PGSSLROOTCERT`.
	pub(super) fn parse(
		url: &str,
		environment: impl Fn(&str) -> Option<String>,
	) -> Result<Self, AddressError> {
		let url = if url.is_empty() { "postgresql://" } else { url };
		if !url.starts_with("postgresql://") && !url.starts_with("postgres://") {
			return Err(AddressError::NoUrl);
		}
		if url.matches('@').count() > 1 {
			return Err(AddressError::TwoHosts);
		}
		let (url, parameters) = take_tls_parameters(url)?;
		let url = match environment("PGPORT").filter(|port| !port.is_empty()) {
			Some(port) => with_port(&url, &port),
			None => url,
		};
		let mut config: Config = url.parse().map_err(|_| AddressError::NoUrl)?;
		complete(&mut config, &environment)?;
		let find = |name: &str, variable: &str| {
			let given = parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
			given.or_else(|| environment(variable)).filter(|value| !value.is_empty())
		};
		let root = find("sslrootcert", "PGSSLROOTCERT");
		let has_tls = match find("sslmode", "PGSSLMODE").as_deref() {
			Some("verify-full") => true,
			Some("disable") => false,
			Some(_) => return Err(AddressError::Mode),
			// What does not leave the machine needs no TLS, unless somebody says whom to trust.
			None => root.is_some() || !is_local(&config),
		};
		if has_tls && config.get_hosts().iter().any(|host| matches!(host, Host::Unix(_))) {
			return Err(AddressError::SocketMode);
		}
		let trust = has_tls.then(|| match root {
			Some(file) if file != "system" => Trust::File(file.into()),
			_ => Trust::System,
		});
		config.ssl_mode(if has_tls { SslMode::Require } else { SslMode::Disable });
		if config.get_application_name().is_none() {
			config.application_name("prosody mod_invites");
		}
		let name = describe(&config);
		Ok(Self { config, trust, name })
	}

	pub(super) const fn config(&self) -> &Config {
		&self.config
	}

	/// Whether the server has to show who it is.
	pub(super) const fn is_verified(&self) -> bool {
		self.trust.is_some()
	}

	/// Whether nothing that is said to the database leaves this machine.
	pub(super) fn is_local(&self) -> bool {
		is_local(&self.config)
	}

	/// What is needed for TLS, read anew each time: certificates are replaced while servers run.
	pub(super) fn tls(&self) -> Result<MakeRustlsConnect, TrustError> {
		let mut roots = RootCertStore::empty();
		if let Some(trust) = &self.trust {
			let certificates = match trust {
				Trust::System => rustls_native_certs::load_native_certs().certs,
				Trust::File(path) => CertificateDer::pem_file_iter(path)
					.and_then(Iterator::collect)
					.map_err(|error| TrustError::Unreadable(path.clone(), error))?,
			};
			if roots.add_parsable_certificates(certificates).0 == 0 {
				return Err(match trust {
					Trust::System => TrustError::NoSystem,
					Trust::File(path) => TrustError::Empty(path.clone()),
				});
			}
		}
		let provider = Arc::new(rustls::crypto::ring::default_provider());
		let config = ClientConfig::builder_with_provider(provider)
			.with_safe_default_protocol_versions()?
			.with_root_certificates(roots)
			.with_no_client_auth();
		Ok(MakeRustlsConnect::new(config))
	}
}

/// Database, host and port.
impl fmt::Display for Address {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.write_str(&self.name)
	}
}

impl fmt::Debug for Address {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		write!(f, "Address({self})")
	}
}

/// The URL without those of its parameters that tokio-postgres does not know, or knows fewer values of.
fn take_tls_parameters(url: &str) -> Result<(String, Vec<(String, String)>), AddressError> {
	// A question mark before the @ is in the password.
	let host = url.find('@').map_or(0, |at| at + 1);
	let Some(question_mark) = url[host..].find('?').map(|found| host + found) else {
		return Ok((url.to_owned(), Vec::new()));
	};
	let (mut rest, mut taken) = (Vec::new(), Vec::new());
	for parameter in url[question_mark + 1..].split('&') {
		match parameter.split_once('=') {
			Some((key @ ("sslmode" | "sslrootcert"), value)) => {
				let value = percent_encoding::percent_decode_str(value).decode_utf8();
				taken.push((key.to_owned(), value.map_err(|_| AddressError::NoUrl)?.into_owned()));
			}
			_ => rest.push(parameter),
		}
	}
	Ok((format!("{}?{}", &url[..question_mark], rest.join("&")), taken))
}

/// The URL with this port for each of its hosts that has none, to which tokio-postgres would give 5432.
fn with_port(url: &str, port: &str) -> String {
	let begin = url.find('@').or_else(|| url.find("//").map(|slash| slash + 1)).map_or(0, |at| at + 1);
	let end = url[begin..].find(['/', '?']).map_or(url.len(), |found| begin + found);
	let has_port = |host: &str| host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
	let hosts: Vec<_> = url[begin..end]
		.split(',')
		.map(
			|host| if host.is_empty() || has_port(host) { host.to_owned() } else { format!("{host}:{port}") },
		)
		.collect();
	format!("{}{}{}", &url[..begin], hosts.join(","), &url[end..])
}

/// Adds what the environment says, and the socket of this machine where nobody names a host.
fn complete(config: &mut Config, environment: impl Fn(&str) -> Option<String>) -> Result<(), AddressError> {
	let set = |name: &str| environment(name).filter(|value| !value.is_empty());
	if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
		config.host(set("PGHOST").unwrap_or_else(|| SOCKET_DIRECTORY.to_owned()));
	}
	if config.get_ports().is_empty()
		&& let Some(port) = set("PGPORT")
	{
		config.port(port.parse().map_err(|_| AddressError::NoUrl)?);
	}
	if config.get_user().is_none()
		&& let Some(user) = set("PGUSER")
	{
		config.user(user);
	}
	if config.get_password().is_none()
		&& let Some(password) = set("PGPASSWORD")
	{
		config.password(password);
	}
	if config.get_dbname().is_none()
		&& let Some(database) = set("PGDATABASE")
	{
		config.dbname(database);
	}
	Ok(())
}

fn is_local(config: &Config) -> bool {
	let is_loopback = |host: &Host| match host {
		Host::Unix(_) => true,
		Host::Tcp(name) => {
			name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
		}
	};
	if config.get_hostaddrs().is_empty() {
		config.get_hosts().iter().all(is_loopback)
	} else {
		config.get_hostaddrs().iter().all(IpAddr::is_loopback)
	}
}

fn describe(config: &Config) -> String {
	let ports = config.get_ports();
	let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
	let hosts: Vec<_> = config
		.get_hosts()
		.iter()
		.enumerate()
		.map(|(index, host)| match host {
			Host::Tcp(name) => format!("{name}:{}", port(index)),
			Host::Unix(directory) => format!("{}/.s.PGSQL.{}", directory.display(), port(index)),
		})
		.collect();
	let hosts = if hosts.is_empty() {
		config.get_hostaddrs().iter().map(ToString::to_string).collect::<Vec<_>>()
	} else {
		hosts
	};
	match config.get_dbname() {
		Some(name) => format!("{name} at {}", hosts.join(", ")),
		None => format!("at {}", hosts.join(", ")),
	}
}

#[cfg(test)]
mod tests {
	use super::*;

	fn parse(url: &str) -> Result<Address, AddressError> {
		Address::parse(url, |_| None)
	}

	fn has_tls(url: &str) -> bool {
		parse(url).unwrap().trust.is_some()
	}

	#[test]
	fn what_leaves_the_machine_is_verified_unless_somebody_says_no() {
		assert!(has_tls("postgresql://db.example.com/prosody"));
		assert!(has_tls("postgresql://192.0.2.1/prosody"));
		assert!(has_tls("postgresql://localhost,db.example.com/prosody"));
		assert!(has_tls("postgresql://localhost/prosody?sslmode=verify-full"));
		assert!(has_tls("postgresql://localhost/prosody?sslrootcert=/etc/ca.pem"));
		assert!(!has_tls("postgresql://db.example.com/prosody?sslmode=disable"));
		for local in ["localhost", "127.0.0.1", "[::1]", "%2Fvar%2Frun%2Fpostgresql", ""] {
			assert!(!has_tls(&format!("postgresql://{local}/prosody")), "{local}");
		}
	}

	#[test]
	fn a_mode_that_verifies_nobody_is_refused() {
		for mode in ["require", "prefer", "allow", "verify-ca", "no"] {
			let url = format!("postgresql://db.example.com/prosody?sslmode={mode}");
			assert_eq!(parse(&url).unwrap_err(), AddressError::Mode, "{mode}");
		}
		let socket = "postgresql:///prosody?sslmode=verify-full";
		assert_eq!(parse(socket).unwrap_err(), AddressError::SocketMode);
	}

	#[test]
	fn the_environment_completes_what_the_url_leaves_out() {
		let environment = |name: &str| {
			let value = match name {
				"PGHOST" => "db.example.com",
				"PGPORT" => "5433",
				"PGUSER" => "prosody",
				"PGPASSWORD" => "secret",
				"PGDATABASE" => "xmpp",
				"PGSSLROOTCERT" => "/etc/ca.pem",
				_ => return None,
			};
			Some(value.to_owned())
		};
		let address = Address::parse("", environment).unwrap();
		assert_eq!(address.to_string(), "xmpp at db.example.com:5433");
		assert_eq!(address.config.get_user(), Some("prosody"));
		assert_eq!(address.config.get_password(), Some(&b"secret"[..]));
		assert!(matches!(&address.trust, Some(Trust::File(path)) if path.ends_with("ca.pem")));
		let address =
			Address::parse("postgresql://me:mine@other:5434/db?sslmode=disable", environment).unwrap();
		assert_eq!(address.to_string(), "db at other:5434");
		assert_eq!(address.config.get_user(), Some("me"));
		assert_eq!(address.config.get_password(), Some(&b"mine"[..]));
		assert!(address.trust.is_none());
		let hosts = "postgresql://u:p%3Aq@a,b:5434,[::1],[::1]:5435/db?connect_timeout=1";
		assert_eq!(
			Address::parse(hosts, environment).unwrap().to_string(),
			"db at a:5433, b:5434, ::1:5433, ::1:5435"
		);
		assert_eq!(Address::parse("postgresql://a", environment).unwrap().to_string(), "xmpp at a:5433");
		assert_eq!(parse("").unwrap().to_string(), "at /var/run/postgresql/.s.PGSQL.5432");
	}

	#[test]
	fn parameters_for_others_are_left_to_them() {
		let url =
			"postgresql://u:p?q@h/db?application_name=x&sslmode=disable&target_session_attrs=read-write";
		let address = parse(url).unwrap();
		assert_eq!(address.config.get_application_name(), Some("x"));
		assert_eq!(address.config.get_password(), Some(&b"p?q"[..]));
		assert!(address.trust.is_none());
	}

	#[test]
	fn no_mistake_in_the_url_shows_a_part_of_the_password() {
		for url in [
			"postgresql://prosody:sec@ret@db.example.com/prosody",
			"postgresql://prosody:secret",
			"postgresql://prosody:secret/db.example.com",
			"postgresql://prosody@db.example.com?passwort=secret",
			"postgresql://prosody:secret@db.example.com:port/prosody",
			"host=db.example.com password=secret",
			"secret",
		] {
			let error = parse(url).unwrap_err();
			assert!(!format!("{error} {error:?}").contains("ret"), "{error}");
		}
		let address = parse("postgresql://prosody:secret@db.example.com/prosody").unwrap();
		assert_eq!(format!("{address} {address:?}").matches("secret").count(), 0);
	}
}
