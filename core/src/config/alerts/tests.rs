//! What is refused, and what it is called.

use super::*;

fn mail() -> ChannelConfig {
    let server = ServerConfig { host: "mail.example.org".to_owned(), ..ServerConfig::default() };
    ChannelConfig {
        from: "chat@example.org".to_owned(),
        to: vec!["ops@example.org".to_owned()],
        servers: vec![server],
        ..ChannelConfig::default()
    }
}

fn text_message() -> ChannelConfig {
    ChannelConfig {
        kind: ChannelKind::Sms,
        from: "+12025550123".to_owned(),
        to: vec!["+4915112345678".to_owned()],
        account: "AC1".to_owned(),
        secret: Secret::new("7LrT2vWc8KdF5hJnZsGa4EuM"),
        ..ChannelConfig::default()
    }
}

fn webhook() -> ChannelConfig {
    ChannelConfig {
        kind: ChannelKind::Webhook,
        url: Secret::new("https://hooks.example.org/chat"),
        secret: Secret::new("9pYb3mQx7LrT2vWc8KdF5hJnZsGa4EuM"),
        ..ChannelConfig::default()
    }
}

fn mistakes(channel: ChannelConfig, production: bool) -> Vec<String> {
    let rule = RuleConfig { channels: vec!["ops".to_owned()], ..RuleConfig::default() };
    let config = AlertsConfig {
        channels: [("ops".to_owned(), channel)].into(),
        rules: [("help_requested".to_owned(), rule)].into(),
        ..AlertsConfig::default()
    };
    let mut mistakes = Vec::new();
    config.check(production, &mut mistakes);
    mistakes
}

#[test]
fn each_kind_of_channel_needs_what_it_needs() {
    for channel in [mail(), text_message(), webhook()] {
        assert_eq!(mistakes(channel, true), Vec::<String>::new());
    }
    let nobody = vec!["ops".to_owned(), "ops@example.org".to_owned()];
    for (channel, wrong) in [
        (ChannelConfig { from: "chat".to_owned(), ..mail() }, "ops.from"),
        (ChannelConfig { to: nobody.clone(), ..mail() }, "ops.to"),
        (ChannelConfig { to: Vec::new(), ..mail() }, "ops.to"),
        (ChannelConfig { servers: Vec::new(), ..mail() }, "ops.servers"),
        (ChannelConfig { per_hour: 0, ..mail() }, "ops.per_hour"),
        (ChannelConfig { to: nobody, ..text_message() }, "ops.to"),
        (ChannelConfig { from: "12025550123".to_owned(), ..text_message() }, "ops.from"),
        (ChannelConfig { account: "A/../B".to_owned(), ..text_message() }, "ops.account"),
        (ChannelConfig { secret: Secret::default(), ..text_message() }, "ops.account, secret"),
        (ChannelConfig { secret: Secret::new("short"), ..webhook() }, "ops.secret"),
        (ChannelConfig { url: Secret::new("http://hooks.example.org/"), ..webhook() }, "ops.url"),
        (ChannelConfig { url: Secret::new("https://169.254.169.254/"), ..webhook() }, "ops.url"),
    ] {
        let found = mistakes(channel, false);
        assert!(found.len() == 1 && found[0].contains(wrong), "{wrong}: {found:?}");
    }
}

#[test]
fn passwords_do_not_travel_in_the_open() {
    let open = |security, user: &str| {
        let (host, user, password) = ("mail".to_owned(), user.to_owned(), Secret::new(user));
        let server = ServerConfig { host, user, password, security, ..ServerConfig::default() };
        ChannelConfig { servers: vec![server], ..mail() }
    };
    assert_eq!(mistakes(open(SecurityConfig::None, ""), false), Vec::<String>::new());
    assert_eq!(mistakes(open(SecurityConfig::None, ""), true).len(), 1);
    assert_eq!(mistakes(open(SecurityConfig::None, "chat"), false).len(), 1);
    assert_eq!(mistakes(open(SecurityConfig::StartTls, "chat"), false), Vec::<String>::new());
}

#[test]
fn rules_name_events_channels_and_places_that_there_are() {
    let rule = |channels: &[&str]| RuleConfig {
        channels: channels.iter().map(|name| (*name).to_owned()).collect(),
        ..RuleConfig::default()
    };
    for (event, rule, wrong) in [
        ("help_wanted", rule(&["ops"]), "rules.help_wanted: is none of"),
        ("store_down", rule(&["opps"]), "\"opps\" is not among"),
        ("store_down", rule(&[]), "channels: must name"),
        ("store_down", RuleConfig { quiet_hours: "22-7".to_owned(), ..rule(&["ops"]) }, "quiet_hours"),
        ("store_down", RuleConfig { text: "{who}".to_owned(), ..rule(&["ops"]) }, "text: {who}"),
        ("store_down", RuleConfig { subject: "{".to_owned(), ..rule(&["ops"]) }, "subject"),
        ("store_down", RuleConfig { repeat_after: Duration::ZERO, ..rule(&["ops"]) }, "repeat_after"),
    ] {
        let config = AlertsConfig {
            channels: [("ops".to_owned(), mail())].into(),
            rules: [(event.to_owned(), rule)].into(),
            ..AlertsConfig::default()
        };
        let mut found = Vec::new();
        config.check(false, &mut found);
        assert!(found.len() == 1 && found[0].contains(wrong), "{wrong}: {found:?}");
    }
}

#[test]
fn secrets_come_from_files_and_are_not_shown() {
    let mut channel = ChannelConfig {
        url: Secret::default(),
        url_file: "url".to_owned(),
        secret: Secret::default(),
        secret_file: "secret".to_owned(),
        ..webhook()
    };
    let server =
        ServerConfig { user: "chat".to_owned(), password_file: "password".to_owned(), ..ServerConfig::default() };
    channel.servers = vec![server];
    let mut config = AlertsConfig { channels: [("ops".to_owned(), channel)].into(), ..AlertsConfig::default() };
    let wrong =
        config.read_secrets(&|file: &std::path::Path| Ok(format!("https://hidden.example.org/{}", file.display())));
    assert_eq!(wrong, Vec::<String>::new());
    let ops = &config.channels["ops"];
    assert!(ops.url.expose().ends_with("url") && ops.secret.expose().ends_with("secret"));
    assert!(ops.servers[0].password.expose().ends_with("password"));
    let shown = format!("{config:?}{}", toml::to_string(&config).unwrap());
    assert!(!shown.contains("hidden"), "{shown}");
}
