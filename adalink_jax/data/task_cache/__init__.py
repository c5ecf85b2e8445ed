"""A seqio task's examples, tokenised once and read by number from then on: `adalink cache-task` writes them, TASK_CACHE reads them."""
