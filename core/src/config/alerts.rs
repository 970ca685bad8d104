//! Who is told of what, and how.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chatbox_proto::{
    settings::{self, ReadFile},
    token::Secret,
};
use serde::{Deserialize, Serialize};

use crate::{
    notify::{
        AlertEvent, Channel,
        quiet::QuietHours,
        sms::{self, Sms},
        smtp::{self, Security, Smtp, SmtpServer},
        template::Template,
        webhook::Webhook,
    },
    session::alerts::{Rule, Rules},
};

const MIN_WEBHOOK_SECRET: usize = 24;
const MAX_ID: usize = 64;
const MAX_RECEIVERS: usize = 20;
const MAX_SERVERS: usize = 5;

/// Alerts: people who are told when something needs them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsConfig {
    /// Ways to reach people, by name: tables like `[alerts.channels.ops]`. Default none.
    pub channels: BTreeMap<String, ChannelConfig>,
    /// What they are told of, by event: `help_requested`, `provider_down`, `store_down`, `crash_loop`, `abnormal_traffic`.
    /// Default none.
    pub rules: BTreeMap<String, RuleConfig>,
    /// Where an admin can act, for the texts; `{session}` in it is the session's id. Default empty.
    pub link: String,
    /// An alert that could not be delivered for so long is given up: 1 min to 7 d. Default 24 h.
    #[serde(with = "settings::duration")]
    pub give_up: Duration,
    /// Longest pause between two tries, which begin at 10 s and are doubled: 10 s to 1 h. Default 15 min.
    #[serde(with = "settings::duration")]
    pub max_pause: Duration,
    /// How long a delivered alert is remembered: 1 h to 90 d. Default 7 d.
    #[serde(with = "settings::duration")]
    pub keep: Duration,
    /// The store is down when it did not answer for so long: 1 s to 1 h. Default 30 s.
    #[serde(with = "settings::duration")]
    pub store_down_after: Duration,
    /// So many starts without a clean end within `crash_window` are a crash loop: 2 to 100. Default 5.
    pub crash_starts: u32,
    /// The time they are counted in: 1 min to 24 h. Default 10 min.
    #[serde(with = "settings::duration")]
    pub crash_window: Duration,
    /// So many refused calls at one core within a minute are abnormal: 10 to 10,000,000. Default 3,000.
    pub abnormal_refusals: u32,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            channels: BTreeMap::new(),
            rules: BTreeMap::new(),
            link: String::new(),
            give_up: 24 * HOUR,
            max_pause: 15 * MINUTE,
            keep: 7 * 24 * HOUR,
            store_down_after: Duration::from_secs(30),
            crash_starts: 5,
            crash_window: 10 * MINUTE,
            abnormal_refusals: 3_000,
        }
    }
}

/// What is told to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleConfig {
    /// Names of channels; each is told.
    pub channels: Vec<String>,
    /// Hours of every day, in UTC, in which nobody is told; what happens then is told when they end. Like `22:00-07:00`; empty:
    /// none. Default empty.
    pub quiet_hours: String,
    /// What happens again within this time is not told again: 1 min to 24 h. A visitor's request for help is always told,
    /// once. Default 1 h.
    #[serde(with = "settings::duration")]
    pub repeat_after: Duration,
    /// The subject, with places `{session} {user} {reason} {detail} {time} {link}`; empty: a built-in one. Default empty.
    pub subject: String,
    /// The text, with the same places; empty: a built-in one. Default empty.
    pub text: String,
}

impl Default for RuleConfig {
    fn default() -> Self {
        Self {
            channels: Vec::new(),
            quiet_hours: String::new(),
            repeat_after: HOUR,
            subject: String::new(),
            text: String::new(),
        }
    }
}

/// The kinds of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// E-mail.
    Smtp,
    /// A text message, through Twilio's API.
    Sms,
    /// A signed HTTP request.
    Webhook,
}

/// One way to reach people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelConfig {
    /// `smtp`, `sms` or `webhook`. Default `smtp`.
    pub kind: ChannelKind,
    /// Messages per hour and core at most, 1 to 10,000; what is more waits. Default 60.
    pub per_hour: u32,
    /// Of mails: who they are from; of text messages: the number, like `+12025550123`, or the id of a messaging service.
    pub from: String,
    /// Of mails: who gets them, 1 to 20; of text messages: one number.
    pub to: Vec<String>,
    /// Of mails: 1 to 5 servers, tried in this order.
    pub servers: Vec<ServerConfig>,
    /// Of a webhook: https, at a public address. Of text messages: where the API is. Default `https://api.twilio.com`.
    pub url: Secret,
    /// A file that holds the URL. Default empty.
    pub url_file: String,
    /// Of a webhook: what requests are signed with, at least 24 characters. Of text messages: the account's token.
    pub secret: Secret,
    /// A file that holds it. Default empty.
    pub secret_file: String,
    /// Of text messages: the account.
    pub account: String,
    /// Whether the URL may be plain http, or of an address that is not public. Default `false`.
    pub allow_private: bool,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            kind: ChannelKind::Smtp,
            per_hour: 60,
            from: String::new(),
            to: Vec::new(),
            servers: Vec::new(),
            url: Secret::default(),
            url_file: String::new(),
            secret: Secret::default(),
            secret_file: String::new(),
            account: String::new(),
            allow_private: false,
        }
    }
}

/// How a connection to a mail server is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityConfig {
    /// TLS from the first byte.
    Tls,
    /// STARTTLS, which must be offered.
    StartTls,
    /// None; not in the production profile.
    None,
}

/// A mail server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Its name.
    pub host: String,
    /// Its port. Default 465.
    pub port: u16,
    /// `tls`, `starttls` or `none`. Default `tls`.
    pub security: SecurityConfig,
    /// A user, with `password`; empty: none. Default empty.
    pub user: String,
    /// Their password. Default empty.
    pub password: Secret,
    /// A file that holds it. Default empty.
    pub password_file: String,
    /// Certificates that its own is signed with, as PEM, beside those of the system. Default empty.
    pub ca_file: String,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 465,
            security: SecurityConfig::Tls,
            user: String::new(),
            password: Secret::default(),
            password_file: String::new(),
            ca_file: String::new(),
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

impl AlertsConfig {
    /// Reads the secrets that are in files; what could not be read.
    pub(super) fn read_secrets(&mut self, read_file: ReadFile<'_>) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (name, channel) in &mut self.channels {
            let setting = |what: &str| format!("alerts.channels.{name}.{what}");
            mistakes.extend(channel.url.read_from(&setting("url"), &channel.url_file, read_file).err());
            mistakes.extend(channel.secret.read_from(&setting("secret"), &channel.secret_file, read_file).err());
            for (index, server) in channel.servers.iter_mut().enumerate() {
                let setting = setting(&format!("servers[{index}].password"));
                mistakes.extend(server.password.read_from(&setting, &server.password_file, read_file).err());
            }
        }
        mistakes
    }

    /// Adds what is wrong.
    pub(super) fn check(&self, production: bool, mistakes: &mut Vec<String>) {
        super::check::within("alerts.crash_starts", self.crash_starts, 2, 100, mistakes);
        super::check::within("alerts.abnormal_refusals", self.abnormal_refusals, 10, 10_000_000, mistakes);
        super::check::times(
            &[
                ("alerts.give_up", self.give_up, MINUTE, 7 * 24 * HOUR),
                ("alerts.max_pause", self.max_pause, Duration::from_secs(10), HOUR),
                ("alerts.keep", self.keep, HOUR, 90 * 24 * HOUR),
                ("alerts.store_down_after", self.store_down_after, Duration::from_secs(1), HOUR),
                ("alerts.crash_window", self.crash_window, MINUTE, 24 * HOUR),
            ],
            mistakes,
        );
        if !self.link.is_empty() && !["https://", "http://"].iter().any(|scheme| self.link.starts_with(scheme)) {
            mistakes.push("alerts.link: must be a URL".to_owned());
        }
        for (name, channel) in &self.channels {
            let setting = format!("alerts.channels.{name}");
            let id = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
            if name.is_empty() || name.len() > MAX_ID || !name.bytes().all(id) {
                mistakes.push(format!("{setting}: a name is 1 to {MAX_ID} characters of A-Z a-z 0-9 _ - ."));
            }
            channel.check(&setting, production, mistakes);
        }
        for (name, rule) in &self.rules {
            let setting = format!("alerts.rules.{name}");
            if AlertEvent::from_name(name).is_none() {
                mistakes.push(format!("{setting}: is none of {}", AlertEvent::ALL.map(AlertEvent::name).join(", ")));
                continue;
            }
            rule.check(&setting, mistakes);
            for channel in rule.channels.iter().filter(|channel| !self.channels.contains_key(*channel)) {
                mistakes.push(format!("{setting}.channels: {channel:?} is not among the channels"));
            }
        }
    }

    /// The rules and channels, built. The configuration has been checked.
    ///
    /// # Errors
    /// What only shows when it is built: certificates, and templates.
    pub(crate) fn build(&self) -> Result<Rules, String> {
        let channels = self.channels.iter().map(|(name, channel)| {
            let built = channel.build().map_err(|wrong| format!("alerts.channels.{name}.{wrong}"))?;
            Ok((name.clone(), (built, channel.per_hour)))
        });
        let channels = channels.collect::<Result<_, String>>()?;
        let rules = self.rules.iter().filter_map(|(name, rule)| {
            let event = AlertEvent::from_name(name)?;
            Some(rule.build(event).map(|rule| (event, rule)).map_err(|wrong| format!("alerts.rules.{name}.{wrong}")))
        });
        Ok(Rules {
            channels,
            rules: rules.collect::<Result<_, String>>()?,
            link: self.link.clone(),
            give_up: self.give_up,
            max_pause: self.max_pause,
            keep: self.keep,
        })
    }
}

impl RuleConfig {
    fn check(&self, setting: &str, mistakes: &mut Vec<String>) {
        if self.channels.is_empty() || self.channels.len() > MAX_RECEIVERS {
            mistakes.push(format!("{setting}.channels: must name 1 to {MAX_RECEIVERS} channels"));
        }
        super::check::times(&[(&format!("{setting}.repeat_after"), self.repeat_after, MINUTE, 24 * HOUR)], mistakes);
        if let Err(wrong) = self.build(AlertEvent::HelpRequested) {
            mistakes.push(format!("{setting}.{wrong}"));
        }
    }

    fn build(&self, event: AlertEvent) -> Result<Rule, String> {
        let (subject, text) = Template::built_in(event);
        let template = |what: &str, text: &str, otherwise: Template| match text {
            "" => Ok(otherwise),
            text => Template::parse(text).map_err(|wrong| format!("{what}: {wrong}")),
        };
        let quiet: Option<Result<QuietHours, String>> =
            (!self.quiet_hours.is_empty()).then(|| self.quiet_hours.parse());
        Ok(Rule {
            channels: self.channels.clone(),
            quiet: quiet.transpose().map_err(|wrong| format!("quiet_hours: {wrong}"))?,
            repeat_after: self.repeat_after,
            subject: template("subject", &self.subject, subject)?,
            text: template("text", &self.text, text)?,
        })
    }
}

impl ChannelConfig {
    fn check(&self, setting: &str, production: bool, mistakes: &mut Vec<String>) {
        super::check::within(&format!("{setting}.per_hour"), self.per_hour, 1, 10_000, mistakes);
        let mut wrong = |text: &str| mistakes.push(format!("{setting}.{text}"));
        match self.kind {
            ChannelKind::Smtp => {
                if !smtp::is_address(&self.from) {
                    wrong("from: must be a mail address");
                }
                if self.to.is_empty() || self.to.len() > MAX_RECEIVERS || !self.to.iter().all(|to| smtp::is_address(to))
                {
                    wrong("to: must be 1 to 20 mail addresses");
                }
                if self.servers.is_empty() || self.servers.len() > MAX_SERVERS {
                    wrong("servers: must be 1 to 5");
                }
                for (index, server) in self.servers.iter().enumerate() {
                    if server.host.is_empty() || server.port == 0 {
                        wrong(&format!("servers[{index}]: host and port must be set"));
                    }
                    if server.user.is_empty() != server.password.is_empty() {
                        wrong(&format!("servers[{index}].user, password: set both or none"));
                    }
                    if server.security == SecurityConfig::None && (production || !server.user.is_empty()) {
                        wrong(&format!(
                            "servers[{index}].security: must be tls or starttls in production and with a password"
                        ));
                    }
                    if production && server.password.is_placeholder() && !server.password.is_empty() {
                        wrong(&format!("servers[{index}].password: is a placeholder"));
                    }
                }
            }
            ChannelKind::Sms => {
                if self.account.is_empty() || self.secret.is_empty() {
                    wrong("account, secret: must be set");
                }
                if !self.account.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    wrong("account: must be letters and digits");
                }
                if !(sms::is_number(&self.from) || self.from.starts_with("MG")) {
                    wrong("from: must be a number like +12025550123, or the id of a messaging service");
                }
                if self.to.len() != 1 || !sms::is_number(&self.to[0]) {
                    wrong("to: must be one number like +12025550123");
                }
            }
            ChannelKind::Webhook => {
                if self.secret.expose().len() < MIN_WEBHOOK_SECRET {
                    wrong("secret: must be at least 24 characters");
                }
            }
        }
        if production && !self.secret.is_empty() && self.secret.is_placeholder() {
            wrong("secret: is a placeholder");
        }
        if let Err(error) = self.build_http() {
            wrong(&error);
        }
    }

    /// What is reached over HTTP.
    fn build_http(&self) -> Result<Option<Arc<dyn Channel>>, String> {
        let wrong = |rule| format!("url: {rule}");
        Ok(match self.kind {
            ChannelKind::Smtp => None,
            ChannelKind::Webhook => {
                let webhook = Webhook::new(self.url.expose(), self.secret.clone(), self.allow_private);
                Some(Arc::new(webhook.map_err(wrong)?))
            }
            ChannelKind::Sms => {
                let url = if self.url.is_empty() { sms::TWILIO } else { self.url.expose() };
                let to = self.to.first().cloned().unwrap_or_default();
                let (account, token) = (self.account.clone(), self.secret.clone());
                let sms = Sms::new(url, account, token, self.from.clone(), to, self.allow_private);
                Some(Arc::new(sms.map_err(wrong)?))
            }
        })
    }

    fn build(&self) -> Result<Arc<dyn Channel>, String> {
        if let Some(channel) = self.build_http()? {
            return Ok(channel);
        }
        let servers = self.servers.iter().enumerate().map(|(index, server)| {
            let ca = (!server.ca_file.is_empty()).then(|| std::fs::read(&server.ca_file)).transpose();
            Ok(SmtpServer {
                host: server.host.clone(),
                port: server.port,
                security: match server.security {
                    SecurityConfig::Tls => Security::Tls,
                    SecurityConfig::StartTls => Security::StartTls,
                    SecurityConfig::None => Security::None,
                },
                credentials: (!server.user.is_empty()).then(|| (server.user.clone(), server.password.clone())),
                ca: ca.map_err(|error| format!("servers[{index}].ca_file: {error}"))?,
            })
        });
        let servers = servers.collect::<Result<Vec<_>, String>>()?;
        Ok(Arc::new(Smtp::new(&servers, &self.from, &self.to)?))
    }
}

#[cfg(test)]
mod tests;
