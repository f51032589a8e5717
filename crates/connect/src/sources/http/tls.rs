//! Our certificate.

use std::{path::Path, sync::Arc};

use calve_engine::{Error, Result};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::config::HttpTls;

/// Reads certificate and key; relative paths are relative to `base`.
///
/// # Errors
/// `Config` when they cannot be read or do not fit together.
pub(super) fn acceptor(config: &HttpTls, base: &Path) -> Result<TlsAcceptor> {
    let (cert, key) = (base.join(&config.cert), base.join(&config.key));
    let unread = |what: &str, path: &Path, error: String| {
        Error::config(format!("cannot read {what}: path={}", path.display())).because(error)
    };
    let chain = CertificateDer::pem_file_iter(&cert)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|e| unread("tls.cert", &cert, e.to_string()))?;
    if chain.is_empty() {
        return Err(unread("tls.cert", &cert, "no certificate".to_owned()));
    }
    let private =
        PrivateKeyDer::from_pem_file(&key).map_err(|e| unread("tls.key", &key, e.to_string()))?;
    let wrong = |e| Error::config("tls.cert and tls.key cannot be used").because(e);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(wrong)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
