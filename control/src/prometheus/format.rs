//! The text formats of the page, and which of them a client gets.

/// The text formats of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text exposition format 0.0.4, which everything reads.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What a client with these `Accept` headers gets (RFC 9110, 12.5.1): OpenMetrics where it is
    /// asked for by name and not liked less than plain text.
    pub fn negotiated<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let mut open = None;
        let mut text = None;
        for range in accept.into_iter().flat_map(|header| header.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0;
            let mut known = true;
            for part in parts {
                let Some((key, value)) = part.split_once('=') else {
                    continue;
                };
                let value = value.trim().trim_matches('"');
                match key.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.parse::<f32>().unwrap_or(0.0),
                    "version" if kind == "application/openmetrics-text" => {
                        known = value == "1.0.0";
                    }
                    "version" => known = value == "0.0.4",
                    _ => {}
                }
            }
            let best = match kind.as_str() {
                "application/openmetrics-text" if known => &mut open,
                "text/plain" if known => &mut text,
                _ => continue,
            };
            *best = Some(best.map_or(quality, |other: f32| other.max(quality)));
        }
        match (open, text) {
            (Some(open), text) if open > 0.0 && open >= text.unwrap_or(0.0) => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}
