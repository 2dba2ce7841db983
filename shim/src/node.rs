//! This node, among those that share the storage: what its leases say to the others.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    str::FromStr,
    sync::Arc,
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use larder_config::{ClientAuth, Config};
use larder_layout::Digest;

use crate::tls::Reloaded;

/// An address that nobody has (RFC 5737): the way there begins at the address of this machine. Nothing is
/// sent to it.
const NOWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
const TOKEN_BYTES: usize = 16;

/// This node, as the others reach it.
pub struct Node {
    url: String,
    tls: Option<Arc<Reloaded>>,
}

/// Who has a lease: where it is, and what shows it that a request comes from a node. Whoever can read the
/// lease can read the blob's storage as well, and so may have the blob.
#[derive(Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its URL, without a path.
    pub url: String,
    /// What it wants to be shown.
    pub token: Token,
    /// The digest of its certificate.
    pub certificate: Option<Digest>,
}

/// A secret of one lease, in hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Node {
    /// This node; `None` when the others cannot reach it.
    pub fn new(config: &Config, tls: Option<&Arc<Reloaded>>) -> Option<Self> {
        if let Some(tls) = &config.http.tls
            && !tls.client_authorities.is_empty()
            && tls.client_auth == ClientAuth::Required
        {
            tracing::info!("nodes have no certificate to show each other: each pulls by itself");
            return None;
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = config.node.url.clone();
        let url = url.or_else(|| Some(format!("{scheme}://{}", reachable(&config.http.addr)?)));
        match &url {
            Some(url) => tracing::info!(url, "where other nodes follow the pulls of this one"),
            None => tracing::warn!("no address for other nodes is known; set node.url"),
        }
        Some(Self { url: url?, tls: tls.cloned() })
    }

    /// What a lease of this node says: each has a token of its own.
    pub fn holder(&self) -> Option<Holder> {
        let mut random = [0; TOKEN_BYTES];
        rand::fill(&mut random).ok()?;
        let token = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let certificate = self.tls.as_ref().map(|tls| tls.certificate());
        Some(Holder { url: self.url.clone(), token: Token(token), certificate })
    }
}

/// The address that stands for all others of a machine is replaced by the one that it is known by.
fn reachable(addr: &str) -> Option<String> {
    let Ok(addr) = addr.parse::<SocketAddr>() else { return Some(addr.to_owned()) };
    let ip = if addr.ip().is_unspecified() { own_address()? } else { addr.ip() };
    (addr.port() != 0).then(|| SocketAddr::new(ip, addr.port()).to_string())
}

fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(NOWHERE).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

impl Token {
    /// Whether `shown` is this one.
    pub fn is(&self, shown: &str) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), shown.as_bytes()).is_ok()
    }

    /// To be sent to the holder, and written nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Holder {
    /// What is written in the lease: `<url>#<token>`, and `.<hex>` of the certificate behind it. No log
    /// may show it.
    pub fn target(&self) -> String {
        let hex = self.certificate.as_ref().map(|digest| format!(".{}", digest.hex()));
        format!("{}#{}{}", self.url, self.token.0, hex.unwrap_or_default())
    }
}

impl FromStr for Holder {
    type Err = ();

    fn from_str(target: &str) -> Result<Self, ()> {
        let (url, secret) = target.split_once('#').ok_or(())?;
        let (token, certificate) = match secret.split_once('.') {
            Some((token, hex)) => (token, Some(format!("sha256:{hex}").parse().map_err(|_| ())?)),
            None => (secret, None),
        };
        let is_token =
            token.len() == 2 * TOKEN_BYTES && token.bytes().all(|b| b.is_ascii_hexdigit());
        let holder = Self { url: url.to_owned(), token: Token(token.to_owned()), certificate };
        is_token.then_some(holder).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use larder_layout::Algorithm;

    use super::*;

    #[test]
    fn what_a_lease_says_is_read_back() {
        let node = Node { url: "http://10.0.0.3:5000".to_owned(), tls: None };
        let plain = node.holder().unwrap();
        let certificate = Some(Digest::of(Algorithm::Sha256, b"certificate"));
        let pinned = Holder { certificate, ..node.holder().unwrap() };
        assert!(!plain.token.is(pinned.token.expose()), "each has its own");
        for holder in [plain, pinned] {
            assert!(holder.target().parse() == Ok(holder));
        }
        for foreign in ["", "http://10.0.0.3:5000", "x#", "x#y", &format!("x#{}.y", "0".repeat(32))]
        {
            assert!(foreign.parse::<Holder>().is_err(), "{foreign}");
        }
    }

    #[test]
    fn others_are_told_an_address_that_is_one_machines() {
        assert_eq!(reachable("127.0.0.1:5000").unwrap(), "127.0.0.1:5000");
        assert_eq!(reachable("node-3:5000").unwrap(), "node-3:5000");
        assert_eq!(reachable("127.0.0.1:0"), None);
        let own = reachable("0.0.0.0:5000");
        assert!(own.is_none_or(|own| own.ends_with(":5000") && !own.starts_with("0.")));
    }
}
