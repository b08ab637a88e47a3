"""What a gene is called, and what is known of genes: tables, lists, sets, vectors, graphs."""
