"""What finished runs say: tables of results, statistics, fits against size, pages and figures."""
