"""What a run needs, known before a machine is rented (`dynllava plan`)."""
