//! Figures as Prometheus would read them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use super::http::client;

/// One figure by its full name, labels included when it has some.
///
/// # Errors
/// When it is not served.
pub async fn gauge(address: SocketAddr, name: &str) -> Result<f64> {
    let response = client().get(format!("http://{address}/metrics")).send().await?;
    ensure!(response.status().is_success(), "metrics: {}", response.status());
    read(&response.text().await?, name)
}

/// One figure of a text in Prometheus' format.
///
/// # Errors
/// When it is not there.
pub fn read(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("{name} is not in\n{text}"))?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_whole_name() {
        let text = "# HELP a_b x\na_b_total 3\na_b 2\nc{d=\"e\"} 1.5\n";
        assert_eq!(read(text, "a_b").unwrap(), 2.0);
        assert_eq!(read(text, "c{d=\"e\"}").unwrap(), 1.5);
        assert!(read(text, "a").is_err());
    }
}
