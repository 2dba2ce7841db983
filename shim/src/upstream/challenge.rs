//! `WWW-Authenticate`: what a registry wants to be shown (RFC 9110, section 11.6.1).

/// One challenge.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    /// `bearer`, `basic`: in lower case.
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, whose name is in lower case.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters.find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header, which may hold several. What cannot be read is skipped.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, behind) = split_token(rest);
        if word.is_empty() {
            let mut skipped = rest.chars();
            if skipped.next().is_none() {
                return challenges;
            }
            rest = skipped.as_str();
            continue;
        }
        let word = word.to_ascii_lowercase();
        // A parameter is a word with a `=` behind it; any other word begins the next challenge.
        if let Some(value) = behind.trim_start().strip_prefix('=') {
            let (value, behind) = split_value(value.trim_start());
            if let Some(challenge) = challenges.last_mut() {
                challenge.parameters.push((word, value));
            }
            rest = behind;
        } else {
            challenges.push(Challenge { scheme: word, parameters: Vec::new() });
            rest = behind;
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// A token, or a quoted string without its quotes and escapes.
fn split_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (token, behind) = split_token(text);
        return (token.to_owned(), behind);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            _ => value.push(character),
        }
    }
    (value, characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters =
            parameters.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Challenge { scheme: scheme.into(), parameters }
    }

    #[test]
    fn challenges_of_real_registries_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        assert_eq!(
            parse(hub),
            [challenge(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:library/alpine:pull"),
                ]
            )]
        );
        assert_eq!(
            parse(r#"Basic realm="Registry Realm""#)[0].parameter("realm"),
            Some("Registry Realm")
        );
    }

    #[test]
    fn several_challenges_quotes_and_commas_are_told_apart() {
        let header = r#"Negotiate a87421000492aa8742==, BASIC realm = "a \"b\", c=d" , Bearer realm=https,error="x,y""#;
        let challenges = parse(header);
        let schemes: Vec<_> = challenges.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(challenges[1].parameter("realm"), Some(r#"a "b", c=d"#));
        assert_eq!(challenges[2].parameter("error"), Some("x,y"));
    }

    #[test]
    fn what_is_no_challenge_does_no_harm() {
        for header in ["", ",,,", "=", "\"", "Bearer realm=\"open", "ä=ö \\", "realm=\"x\""] {
            assert!(parse(header).len() <= 1, "{header:?}");
        }
    }
}
