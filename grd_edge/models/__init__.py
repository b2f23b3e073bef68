"""Networks: the generator of DeepIndustrial-SN / GRD-Net and what it is trained with."""
