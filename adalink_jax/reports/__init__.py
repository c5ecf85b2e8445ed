"""Results of finished runs: tables, statistics, fits against model size, pages and figures."""
